// What the kernels of select_motion.cu cut a map into, and the arithmetic on it: tiles, channel sums, Sobel over time,
// partial statistics and their merging. Included there; no other header is.
#pragma once

#ifndef SHARED_MEMORY
#define SHARED_MEMORY(name) extern __shared__ float name[]
#endif

namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 512;
constexpr float kTiny = 1.17549435e-38f;  // the smallest normal number, as in reference.py
constexpr float kHuge = 3.40282347e+38f;
constexpr int kSlots = 8;                 // partials of a block: 7 groups of voxels, and what belongs to no group

enum Flags : int {
    kRising = 1,        // keep G > threshold
    kFalling = 2,       // keep -G > threshold; neither: keep |G| > threshold
    kSigmaOfAbs = 4,    // σ of |G| in place of G
    kZeroBorder = 8,    // zeros lie outside the map, in place of copies of the nearest voxel
    kShift = 16,        // author-2020 with a border of zeros: σ and G are those of R - min(R) where min(R) < 0
    kCalibrated = 32,   // thresholds[t]·Σ|R| in place of n·σ
};

// What is kept is copied as bits. These are read as float only to find the mask.
__device__ __forceinline__ float as_float(float bits) { return bits; }

struct Bf16 {
    unsigned short bits;
};
__device__ __forceinline__ float as_float(Bf16 value) { return __uint_as_float(unsigned(value.bits) << 16); }

struct F16 {
    unsigned short bits;
};
__device__ __forceinline__ float as_float(F16 value) {
    const unsigned magnitude = (value.bits & 0x7fffu) << 13;
    // The power of two moves the exponent's bias, exactly, for subnormal numbers too.
    float result = __uint_as_float(magnitude) * 5.192296858534828e33f;
    if ((value.bits & 0x7c00u) == 0x7c00u) result = __uint_as_float(magnitude | 0x7f800000u);
    return __uint_as_float(__float_as_uint(result) | (unsigned(value.bits & 0x8000u) << 16));
}

template <class T>
struct Problem {
    const T* __restrict__ relevance;
    T* __restrict__ motion;             // [B,C,T,H,W], contiguous
    unsigned char* __restrict__ mask;   // [B,T,H,W], contiguous
    float* __restrict__ workspace;      // [B, groups, kSlots, 4], see Part
    const float* __restrict__ thresholds;
    long long clips;
    int channels, steps, rows, columns;
    long long clip_stride, channel_stride, step_stride, row_stride, column_stride;
    float n_sigma;
    int flags;
    int tile_steps, tile_rows, tile_columns;
    int groups;  // blocks that share a clip

    __device__ bool has(int flag) const { return (flags & flag) != 0; }
    __device__ float voxels() const { return float(steps) * float(rows) * float(columns); }
    __device__ int tiles_over(int size, int tile) const { return (size - 1) / tile + 1; }
    __device__ int tiles() const {
        return tiles_over(steps, tile_steps) * tiles_over(rows, tile_rows) * tiles_over(columns, tile_columns);
    }
};

// A box of the map, without the voxel around it.
struct Tile {
    int step, row, column;     // where it begins
    int steps, rows, columns;  // how far it reaches

    __device__ int wide() const { return columns + 2; }
    __device__ int high() const { return rows + 2; }
};

// Statistics of n values: what they were divided by, their mean, and their summed squared deviations from it, in units
// of peak². Squares of values divided by the greatest magnitude neither vanish nor overflow.
struct Part {
    float n, peak, mean, squares;
};

__device__ __forceinline__ Part merge(const Part& a, const Part& b) {
    if (b.n == 0.0f) return a;
    if (a.n == 0.0f) return b;
    Part both;
    both.n = a.n + b.n;
    both.peak = fmaxf(a.peak, b.peak);
    const float of_a = a.peak / both.peak, of_b = b.peak / both.peak;
    const float apart = b.mean - a.mean, scaled = apart / both.peak;
    both.mean = a.mean + apart * (b.n / both.n);
    both.squares = a.squares * of_a * of_a + b.squares * of_b * of_b + scaled * scaled * (a.n * (b.n / both.n));
    return both;
}

struct Merge {
    __device__ Part operator()(const Part& a, const Part& b) const { return merge(a, b); }
};
// Count, greatest magnitude, and sums.
struct Sum {
    __device__ Part operator()(const Part& a, const Part& b) const {
        return {a.n + b.n, fmaxf(a.peak, b.peak), a.mean + b.mean, a.squares + b.squares};
    }
};
// Smallest and greatest value, in mean and squares.
struct Range {
    __device__ Part operator()(const Part& a, const Part& b) const {
        return {0.0f, 0.0f, fminf(a.mean, b.mean), fmaxf(a.squares, b.squares)};
    }
};

// All threads give one value and get the same result, by a tree whose shape depends on the block's size alone. The size
// is a power of two.
template <class Combine>
__device__ Part reduce(Part* scratch, Part mine, Combine combine) {
    scratch[threadIdx.x] = mine;
    __syncthreads();
#pragma unroll 1
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) scratch[threadIdx.x] = combine(scratch[threadIdx.x], scratch[threadIdx.x + half]);
        __syncthreads();
    }
    const Part result = scratch[0];
    __syncthreads();  // before anyone writes scratch again
    return result;
}

template <class T>
__device__ Tile tile_at(const Problem<T>& p, int index) {
    const int across = p.tiles_over(p.columns, p.tile_columns), down = p.tiles_over(p.rows, p.tile_rows);
    const int rest = index / across;
    Tile tile;
    tile.column = (index - rest * across) * p.tile_columns;
    tile.row = rest % down * p.tile_rows;
    tile.step = rest / down * p.tile_steps;
    tile.steps = min(p.tile_steps, p.steps - tile.step);
    tile.rows = min(p.tile_rows, p.rows - tile.row);
    tile.columns = min(p.tile_columns, p.columns - tile.column);
    return tile;
}

// Channel sums, less shift, of a tile and of one voxel around it → box [steps+2, rows+2, columns+2].
template <class T>
__device__ void load(const Problem<T>& p, long long clip, const Tile& tile, float shift, float* box) {
    const T* source = p.relevance + clip * p.clip_stride;
    const int lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
    const int lines = (tile.steps + 2) * tile.high();
#pragma unroll 1
    for (int line = threadIdx.x / kWarp; line < lines; line += warps) {
        const int step = tile.step + line / tile.high() - 1, row = tile.row + line % tile.high() - 1;
        const int near_step = min(max(step, 0), p.steps - 1), near_row = min(max(row, 0), p.rows - 1);
        const T* from = source + near_step * p.step_stride + near_row * p.row_stride;
        for (int i = lane; i < tile.wide(); i += kWarp) {
            const int column = tile.column + i - 1, near_column = min(max(column, 0), p.columns - 1);
            float sum = 0.0f;
            if (!p.has(kZeroBorder) || (step == near_step && row == near_row && column == near_column)) {
                const T* voxel = from + near_column * p.column_stride;
                for (int channel = 0; channel < p.channels; ++channel) sum += as_float(voxel[channel * p.channel_stride]);
                sum -= shift;
            }
            box[line * tile.wide() + i] = sum;
        }
    }
}

// Hand G to a visitor, for the steps of a tile from first up to last: visit.begin(step, column), counted within the tile,
// then visit(G) for each row from the first on. The difference comes before the smoothing, and rows before columns, as
// in reference.py: G has the same bits there.
template <class Visit>
__device__ __forceinline__ void for_each_gradient(const float* box, const Tile& tile, int first, int last, Visit& visit) {
    const int wide = tile.wide();
#pragma unroll 1
    for (int i = threadIdx.x; i < (last - first) * tile.columns; i += blockDim.x) {
        const int step = first + i / tile.columns, column = i % tile.columns;
        const float* before = box + step * tile.high() * wide + column;
        const float* after = before + 2 * tile.high() * wide;
        visit.begin(step, column);
        float above[3], here[3];
        for (int k = 0; k < 3; ++k) {
            above[k] = after[k] - before[k];
            here[k] = after[wide + k] - before[wide + k];
        }
#pragma unroll 1
        for (int row = 0; row < tile.rows; ++row) {
            before += wide;
            after += wide;
            float smooth[3];
            for (int k = 0; k < 3; ++k) {
                const float below = after[wide + k] - before[wide + k];
                smooth[k] = (above[k] + below) + 2.0f * here[k];
                above[k] = here[k];
                here[k] = below;
            }
            visit((smooth[0] + smooth[2]) + 2.0f * smooth[1]);
        }
    }
}

// How many of the sides up and down, left and right of a voxel lie outside the map; an axis of length 1 counts for none.
template <class T>
__device__ __forceinline__ int edges(const Problem<T>& p, int row, int column) {
    return (p.rows > 1 && (row == 0 || row == p.rows - 1)) + (p.columns > 1 && (column == 0 || column == p.columns - 1));
}

}  // namespace
