// Motion selection of relevance maps on a GPU: Sobel over time, σ of each clip, threshold, masked output.
//
// What it computes is defined by selrel_kernels/reference.py; kernels/README.md says how it is launched and why.
//   launch 1  measure  each block reads its tiles of a clip once and leaves one partial statistic of them
//   launch 2  apply    each block merges the partials of its clip, always in the same order, and writes its tiles
//   cluster            both in one launch, on sm_90 and later: the channel sums of a clip stay in the shared memory
//                      of a cluster of blocks, so that the map is read once
// A tile is a box of time steps, rows and columns. Its channel sums, with one voxel around it, lie in shared memory.
// NVRTC needs no header of CUDA for it, and a host compiler only the one that stands in for the built-ins.

#include "motion_tiles.cuh"

namespace {

// Which voxels of a tile belong to a group, and which number of each is measured.
struct Group {
    int first, last;  // steps of the tile
    int edges;        // only voxels with so many edges; below 0: all
    float sign;       // of sign·G,
    bool of_abs;      // or of |G|

    __device__ float measured(float gradient) const { return of_abs ? fabsf(gradient) : sign * gradient; }
};

// Calls use(value) for the voxels of a group.
template <class T, class Use>
struct OfGroup {
    const Problem<T>& p;
    const Tile& tile;
    const Group& group;
    Use use;
    int row, column;

    __device__ void begin(int, int within) {
        row = tile.row;
        column = tile.column + within;
    }
    __device__ void operator()(float gradient) {
        if (group.edges < 0 || edges(p, row, column) == group.edges) use(group.measured(gradient));
        ++row;
    }
};

template <class T, class Use>
__device__ __forceinline__ void for_each_of(const Problem<T>& p, const Tile& tile, const float* box, const Group& group,
                                            Use use) {
    OfGroup<T, Use> visit{p, tile, group, use, 0, 0};
    for_each_gradient(box, tile, group.first, group.last, visit);
}

// Statistics of a group in one tile, by two passes over G, in shared memory.
template <class T>
__device__ Part statistics(const Problem<T>& p, const Tile& tile, const float* box, Part* scratch, const Group& group) {
    constexpr float kDown = 1.52587890625e-05f, kUp = 65536.0f;  // a tile has fewer voxels than this: no sum overflows
    Part mine{0.0f, 0.0f, 0.0f, 0.0f};
    for_each_of(p, tile, box, group, [&](float value) {
        mine.n += 1.0f;
        mine.peak = fmaxf(mine.peak, fabsf(value));
        mine.mean += value * kDown;
    });
    Part all = reduce(scratch, mine, Sum());
    if (all.n == 0.0f) return all;
    all.mean *= kUp / all.n;
    all.peak = fmaxf(all.peak, kTiny);
    const float inverse = 1.0f / all.peak;
    float squares = 0.0f;
    for_each_of(p, tile, box, group, [&](float value) {
        const float apart = (value - all.mean) * inverse;
        squares += apart * apart;
    });
    // NaN and infinity in the map end here: they make the squares NaN, and no voxel of the clip exceeds the threshold.
    all.squares = reduce(scratch, {0.0f, 0.0f, 0.0f, squares}, Sum()).squares;
    return all;
}

// Σ|R| (in mean) or the range of R (Range) of a tile.
template <class T>
__device__ Part of_relevance(const Problem<T>& p, const Tile& tile, const float* box, Part* scratch) {
    Part mine{0.0f, 0.0f, 0.0f, 0.0f}, range{0.0f, 0.0f, kHuge, -kHuge};
#pragma unroll 1
    for (int i = threadIdx.x; i < tile.steps * tile.columns; i += blockDim.x) {
        const float* voxel = box + (i / tile.columns + 1) * tile.high() * tile.wide() + i % tile.columns + 1;
#pragma unroll 1
        for (int row = 0; row < tile.rows; ++row) {
            voxel += tile.wide();
            mine.mean += fabsf(*voxel);
            range.mean = fminf(range.mean, *voxel);
            range.squares = fmaxf(range.squares, *voxel);
        }
    }
    return p.has(kCalibrated) ? reduce(scratch, mine, Sum()) : reduce(scratch, range, Range());
}

// Add a tile to the partials of its block, in shared memory, where the block's first thread keeps them. Slot 0 is of all
// voxels, or Σ|R| where thresholds are calibrated. Under kShift, slot 0 is of the steps between the first and the last;
// slots 1-3 are of the first, by number of edges, and 4-6 of the last; slot 7 holds the range of R. There the shift is
// known only when all blocks are done. In the first and the last step it moves G by a weight that depends on the edges
// alone: shifting means is enough, and squares stay as they are. R is never below the shift, so G is nowhere below zero
// in the first step, nor above it in the last: |G| is G, or -G.
template <class T>
__device__ void measure_tile(const Problem<T>& p, const Tile& tile, const float* box, Part* scratch, Part* parts) {
    const bool writes = threadIdx.x == 0;
    if (p.has(kCalibrated)) {
        const Part mass = of_relevance(p, tile, box, scratch);
        if (writes) parts[0] = Sum()(parts[0], mass);
        return;
    }
    if (p.has(kShift)) {
        const Part range = of_relevance(p, tile, box, scratch);
        if (writes) parts[kSlots - 1] = Range()(parts[kSlots - 1], range);
    }
    const bool has_first = p.has(kShift) && tile.step == 0;
    const bool has_last = p.has(kShift) && tile.step + tile.steps == p.steps;
#pragma unroll 1
    for (int slot = 0; slot < (p.has(kShift) ? kSlots - 1 : 1); ++slot) {
        Group group{has_first ? 1 : 0, tile.steps - (has_last ? 1 : 0), -1, 1.0f, p.has(kSigmaOfAbs)};
        if (slot >= 1) {
            const bool at_first = slot < 4;
            if (at_first ? !has_first : !has_last) continue;
            const int step = at_first ? 0 : tile.steps - 1;
            group = {step, step + 1, (slot - 1) % 3, at_first ? 1.0f : -1.0f, false};
        }
        const Part part = statistics(p, tile, box, scratch, group);
        if (writes) parts[slot] = merge(parts[slot], part);
    }
}

__device__ __forceinline__ void clear(Part* parts) {
    if (threadIdx.x != 0) return;
    for (int slot = 0; slot < kSlots - 1; ++slot) parts[slot] = {0.0f, 0.0f, 0.0f, 0.0f};
    parts[kSlots - 1] = {0.0f, 0.0f, kHuge, -kHuge};
}

// Threshold of a clip, and what is subtracted from R under kShift.
struct Decision {
    float threshold;  // n·σ, or Σ|R|
    float shift;
};

template <class T>
__device__ Part merge_slot(const Problem<T>& p, const Part* parts, Part* scratch, int slot) {
    Part mine{0.0f, 0.0f, 0.0f, 0.0f};
    if (p.has(kCalibrated)) {
#pragma unroll 1
        for (int i = threadIdx.x; i < p.groups; i += blockDim.x) mine = Sum()(mine, parts[i * kSlots + slot]);
        return reduce(scratch, mine, Sum());
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < p.groups; i += blockDim.x) mine = merge(mine, parts[i * kSlots + slot]);
    return reduce(scratch, mine, Merge());
}

template <class T>
__device__ Decision decide(const Problem<T>& p, const Part* parts, Part* scratch) {
    Part all = merge_slot(p, parts, scratch, 0);
    if (p.has(kCalibrated)) return {all.mean, 0.0f};
    float shift = 0.0f;
    if (p.has(kShift)) {
        Part range{0.0f, 0.0f, kHuge, -kHuge};
#pragma unroll 1
        for (int i = threadIdx.x; i < p.groups; i += blockDim.x) range = Range()(range, parts[i * kSlots + kSlots - 1]);
        shift = fminf(reduce(scratch, range, Range()).mean, 0.0f);
        const float inner = (p.rows > 1 ? 4.0f : 2.0f) * (p.columns > 1 ? 4.0f : 2.0f);
#pragma unroll 1
        for (int slot = 1; slot < kSlots - 1; ++slot) {
            const int count = (slot - 1) % 3;
            Part part = merge_slot(p, parts, scratch, slot);
            const float weight = count == 0 ? inner : count == 1 ? inner * 0.75f : inner * 0.5625f;
            part.mean -= shift * weight;
            if (slot >= 4 && !p.has(kSigmaOfAbs)) part.mean = -part.mean;
            all = merge(all, part);
        }
    }
    const float variance = all.squares / (p.voxels() - 1.0f);
    return {p.n_sigma * (all.peak * sqrtf(variance)), shift};
}

// Writes the mask, and what it keeps of R, of a tile.
template <class T>
struct Writer {
    const Problem<T>& p;
    const Tile& tile;
    long long clip;
    float threshold, limit;
    long long step_size, clip_size;
    const T* from;
    T* motion;
    unsigned char* mask;

    __device__ void begin(int step_within, int column_within) {
        const int step = tile.step + step_within, column = tile.column + column_within;
        const long long at = step * step_size + (long long)tile.row * p.columns + column;
        limit = p.has(kCalibrated) ? threshold * p.thresholds[step] : threshold;
        from = p.relevance + clip * p.clip_stride + step * p.step_stride + tile.row * p.row_stride +
               column * p.column_stride;
        motion = p.motion + clip * p.channels * clip_size + at;
        mask = p.mask + clip * clip_size + at;
    }
    __device__ void operator()(float gradient) {
        const float value = p.has(kRising) ? gradient : p.has(kFalling) ? -gradient : fabsf(gradient);
        const bool kept = value > limit;
        *mask = kept;
        // R is read again where it is kept alone: few voxels are.
        const T* channel_from = from;
        T* channel_to = motion;
#pragma unroll 1
        for (int channel = 0; channel < p.channels; ++channel) {
            *channel_to = kept ? *channel_from : T{};
            channel_from += p.channel_stride;
            channel_to += clip_size;
        }
        from += p.row_stride;
        motion += p.columns;
        mask += p.columns;
    }
};

template <class T>
__device__ void write(const Problem<T>& p, long long clip, const Tile& tile, const float* box, float threshold) {
    const long long step_size = (long long)p.rows * p.columns;
    Writer<T> writer{p, tile, clip, threshold, 0.0f, step_size, p.steps * step_size, nullptr, nullptr, nullptr};
    for_each_gradient(box, tile, 0, tile.steps, writer);
}

template <class T>
__device__ void measure(const Problem<T>& p) {
    SHARED_MEMORY(memory);
    Part* scratch = reinterpret_cast<Part*>(memory);
    Part* parts = scratch + blockDim.x;
    float* box = reinterpret_cast<float*>(parts + kSlots);
    const int tiles = p.tiles();
#pragma unroll 1
    for (long long item = blockIdx.x; item < p.clips * p.groups; item += gridDim.x) {
        clear(parts);
#pragma unroll 1
        for (int index = int(item % p.groups); index < tiles; index += p.groups) {
            const Tile tile = tile_at(p, index);
            load(p, item / p.groups, tile, 0.0f, box);
            __syncthreads();
            measure_tile(p, tile, box, scratch, parts);  // ends with a barrier: the next tile may be loaded over this one
        }
        if (threadIdx.x == 0) {
            Part* out = reinterpret_cast<Part*>(p.workspace) + item * kSlots;
            out[0] = parts[0];
            if (p.has(kShift))
#pragma unroll 1
                for (int slot = 1; slot < kSlots; ++slot) out[slot] = parts[slot];
        }
    }
}

template <class T>
__device__ void apply(const Problem<T>& p) {
    SHARED_MEMORY(memory);
    Part* scratch = reinterpret_cast<Part*>(memory);
    float* box = memory + 4 * blockDim.x;
    const int tiles = p.tiles();
#pragma unroll 1
    for (long long item = blockIdx.x; item < p.clips * p.groups; item += gridDim.x) {
        const long long clip = item / p.groups;
        const Part* parts = reinterpret_cast<const Part*>(p.workspace) + clip * p.groups * kSlots;
        const Decision decision = decide(p, parts, scratch);
#pragma unroll 1
        for (int index = int(item % p.groups); index < tiles; index += p.groups) {
            const Tile tile = tile_at(p, index);
            load(p, clip, tile, decision.shift, box);
            __syncthreads();
            write(p, clip, tile, box, decision.threshold);
            __syncthreads();  // before the next tile is loaded over this one
        }
    }
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// One clip for a cluster of p.groups blocks, one tile for each block; blocks without a tile only take part in barriers.
template <class T>
__device__ void select_in_cluster(const Problem<T>& p) {
    SHARED_MEMORY(memory);
    Part* scratch = reinterpret_cast<Part*>(memory);
    Part* parts = scratch + blockDim.x;
    Part* all = parts + kSlots;
    float* box = reinterpret_cast<float*>(all + p.groups * kSlots);
    const int rank = blockIdx.x % p.groups;
    for (long long clip = blockIdx.x / p.groups; clip < p.clips; clip += gridDim.x / p.groups) {
        clear(parts);
        const bool has_tile = rank < p.tiles();
        const Tile tile = has_tile ? tile_at(p, rank) : Tile{};
        if (has_tile) {
            load(p, clip, tile, 0.0f, box);
            __syncthreads();
            measure_tile(p, tile, box, scratch, parts);
        }
        __cluster_barrier_arrive();
        __cluster_barrier_wait();
        if (int(threadIdx.x) < p.groups)
            all[threadIdx.x * kSlots] = *static_cast<const Part*>(__cluster_map_shared_rank(parts, threadIdx.x));
        // Every block has read the partials of all others before one overwrites its own, or ends.
        __cluster_barrier_arrive();
        __cluster_barrier_wait();
        const Decision decision = decide(p, all, scratch);
        if (has_tile) write(p, clip, tile, box, decision.threshold);
        __syncthreads();
    }
}
#endif

}  // namespace

#define PARAMETERS(T)                                                                                                  \
    const T *relevance, T *motion, unsigned char *mask, float *workspace, const float *thresholds, long long clips,    \
        int channels, int steps, int rows, int columns, long long clip_stride, long long channel_stride,               \
        long long step_stride, long long row_stride, long long column_stride, float n_sigma, int flags,                \
        int tile_steps, int tile_rows, int tile_columns, int groups
#define PROBLEM(T)                                                                                                     \
    Problem<T> {                                                                                                       \
        relevance, motion, mask, workspace, thresholds, clips, channels, steps, rows, columns, clip_stride,            \
            channel_stride, step_stride, row_stride, column_stride, n_sigma, flags, tile_steps, tile_rows,             \
            tile_columns, groups                                                                                       \
    }
#define KERNELS(suffix, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(kMaxThreads, 2) select_motion_measure_##suffix(PARAMETERS(T)) {          \
        measure(PROBLEM(T));                                                                                           \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(kMaxThreads, 2) select_motion_apply_##suffix(PARAMETERS(T)) {            \
        apply(PROBLEM(T));                                                                                             \
    }
KERNELS(f32, float)
KERNELS(f16, F16)
KERNELS(bf16, Bf16)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define CLUSTER_KERNEL(suffix, T)                                                                                      \
    extern "C" __global__ void __launch_bounds__(kMaxThreads, 2) select_motion_cluster_##suffix(PARAMETERS(T)) {          \
        select_in_cluster(PROBLEM(T));                                                                                 \
    }
CLUSTER_KERNEL(f32, float)
CLUSTER_KERNEL(f16, F16)
CLUSTER_KERNEL(bf16, Bf16)
#endif
