// Runs the kernels of select_motion.cu, compiled for the host, over the cases in a file: run_cases CASES RESULTS.
//
// A case is a Header, the map's storage and, where thresholds are calibrated, one float for each time step. A result is
// the motion relevance and the mask. Every buffer has exactly the size it should have, so that AddressSanitizer finds an
// access outside it. SOURCE names the .cu file.
#include "cuda_on_host.h"
#include SOURCE

#include <sys/mman.h>

#include <cstdint>
#include <memory>

struct Header {
    std::int64_t in_cluster, type, clips, channels, steps, rows, columns;
    std::int64_t strides[5];  // of the map, in elements
    std::int64_t storage;     // elements of the map's storage
    std::int64_t only_clip;   // below 0: all clips. Else the storage holds this clip alone, and it alone is computed
    std::int64_t flags, tile_steps, tile_rows, tile_columns, groups, threads, grid, shared_bytes, order;
    double n_sigma;
};

static void read(std::FILE* file, void* to, std::size_t bytes) {
    if (bytes && std::fread(to, 1, bytes, file) != bytes) host::fail("the file of cases ends too early");
}

// Memory of the given size, exactly. Where only a clip is used, so much is reserved that only what is touched exists.
struct Buffer {
    std::size_t bytes;
    bool reserved;
    char* data;

    Buffer(std::size_t bytes, bool reserved) : bytes(bytes), reserved(reserved) {
        if (reserved) {
            void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (memory == MAP_FAILED) host::fail("no address space");
            data = static_cast<char*>(memory);
        } else {
            data = static_cast<char*>(std::malloc(bytes));
            std::memset(data, 0xff, bytes);  // NaN in every type
        }
    }
    ~Buffer() {
        if (reserved)
            munmap(data, bytes);
        else
            std::free(data);
    }
    Buffer(const Buffer&) = delete;
};

template <class T, class Kernel>
static void run_case(const Header& c, std::FILE* cases, std::FILE* results, Kernel measure, Kernel apply, Kernel cluster) {
    const bool one = c.only_clip >= 0;
    const std::int64_t voxels = c.steps * c.rows * c.columns, clip_bytes = c.channels * voxels * sizeof(T);
    const std::int64_t skipped = one ? c.only_clip : 0, written = one ? 1 : c.clips;
    Buffer map((skipped * c.strides[0] + c.storage) * sizeof(T), one);
    Buffer motion(c.clips * clip_bytes, one), mask(c.clips * voxels, one);
    Buffer workspace(c.in_cluster ? 0 : c.clips * c.groups * kSlots * sizeof(Part), one && !c.in_cluster);
    read(cases, map.data + skipped * c.strides[0] * sizeof(T), c.storage * sizeof(T));
    std::unique_ptr<float[]> thresholds;
    if (c.flags & kCalibrated) {
        thresholds.reset(new float[c.steps]);
        read(cases, thresholds.get(), c.steps * sizeof(float));
    }
    auto call = [&](Kernel kernel) {
        return [&, kernel] {
            kernel(reinterpret_cast<const T*>(map.data), reinterpret_cast<T*>(motion.data),
                   reinterpret_cast<unsigned char*>(mask.data), reinterpret_cast<float*>(workspace.data), thresholds.get(),
                   c.clips, c.channels, c.steps, c.rows, c.columns, c.strides[0], c.strides[1], c.strides[2], c.strides[3],
                   c.strides[4], float(c.n_sigma), c.flags, c.tile_steps, c.tile_rows, c.tile_columns, c.groups);
        };
    };
    host::Launch how{unsigned(c.grid), unsigned(c.threads), c.in_cluster ? unsigned(c.groups) : 1u,
                     std::size_t(c.shared_bytes), 0, unsigned(c.grid), unsigned(c.order)};
    if (one) {
        how.first = unsigned(c.only_clip * c.groups);
        how.last = how.first + unsigned(c.groups);
    }
    if (c.in_cluster) {
        host::launch(how, call(cluster));
    } else {
        host::launch(how, call(measure));
        host::launch(how, call(apply));
    }
    std::fwrite(motion.data + skipped * clip_bytes, 1, written * clip_bytes, results);
    std::fwrite(mask.data + skipped * voxels, 1, written * voxels, results);
}

int main(int count, char** arguments) {
    if (count != 3) host::fail("run_cases CASES RESULTS");
    std::FILE* cases = std::fopen(arguments[1], "rb");
    std::FILE* results = std::fopen(arguments[2], "wb");
    if (!cases || !results) host::fail("a file cannot be opened");
    Header c;
    while (std::fread(&c, sizeof c, 1, cases) == 1) {
        if (c.type == 0)
            run_case<float>(c, cases, results, select_motion_measure_f32, select_motion_apply_f32, select_motion_cluster_f32);
        else if (c.type == 1)
            run_case<F16>(c, cases, results, select_motion_measure_f16, select_motion_apply_f16, select_motion_cluster_f16);
        else
            run_case<Bf16>(c, cases, results, select_motion_measure_bf16, select_motion_apply_bf16,
                           select_motion_cluster_bf16);
    }
    std::fclose(results);
    std::fclose(cases);
    return 0;
}
