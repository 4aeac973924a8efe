// What the plugin of motion_plugin.cu says to TensorRT's logger, how it cuts a map, and its settings. Included there.
#pragma once

namespace selrel {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using Severity = nvinfer1::ILogger::Severity;

constexpr char kName[] = "SelectMotion", kVersion[] = "1", kNamespace[] = "";
constexpr std::int32_t kRefused = 1;

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

__attribute__((format(printf, 1, 2))) void report(const char* format, ...) noexcept {
    char text[512];
    const int prefix = std::snprintf(text, sizeof text, "%s: ", kName);
    va_list values;
    va_start(values, format);
    std::vsnprintf(text + prefix, sizeof text - std::size_t(prefix), format, values);
    va_end(values);
    nvinfer1::ILoggerFinder* finder = logger_finder.load();
    nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr;
    if (!logger && getLogger) logger = getLogger();
    if (logger)
        logger->log(Severity::kERROR, text);
    else
        std::fprintf(stderr, "%s\n", text);
}

bool worked(cudaError_t status, const char* what) noexcept {
    if (status != cudaSuccess) report("%s: %s", what, cudaGetErrorString(status));
    return status == cudaSuccess;
}

// ---- plan.py ----

constexpr long long kPartBytes = 16, kMaxGroups = 512, kTwoBlocks = 76 * 1024, kLargestTile = 65535;
static_assert(sizeof(Part) == kPartBytes, "plan.py counts the bytes of a partial");

struct Limits {
    int multiprocessors, shared_memory;
};

struct Shape {
    long long clips, channels, steps, rows, columns;

    long long voxels() const { return steps * rows * columns; }
    bool operator==(const Shape& other) const {
        return clips == other.clips && channels == other.channels && steps == other.steps && rows == other.rows &&
               columns == other.columns;
    }
};

struct Plan {
    long long tile_steps, tile_rows, tile_columns, groups, grid, threads, shared_bytes;
};

long long divided_up(long long size, long long part) { return (size + part - 1) / part; }

// Length of the pieces, `most` at most, that `size` is cut into as evenly as it goes.
long long even(long long size, long long most, long long multiple = 1) {
    const long long pieces = divided_up(size, most > 1 ? most : 1), length = divided_up(size, pieces);
    const long long rounded = divided_up(length, multiple) * multiple;
    return pieces > 1 && rounded <= most ? rounded : length;
}

bool plan_launches(const Shape& shape, const Limits& limits, Plan* plan) noexcept {
    const long long budget = limits.shared_memory < kTwoBlocks ? limits.shared_memory : kTwoBlocks;
    const long long column = even(shape.columns, 2 * kWarp - 2, 8);
    long long step = even(shape.steps, 16);
    const long long most_rows =
        (budget - kPartBytes * (kMaxThreads + kSlots)) / (4 * (step + 2) * (column + 2)) - 2;
    if (most_rows < 1) {
        report("a block of this device has too little shared memory: %d bytes", limits.shared_memory);
        return false;
    }
    const long long of_sums = kLargestTile / (step * column);
    long long row = even(shape.rows, most_rows < of_sums ? most_rows : of_sums);
    const auto tiles = [&] {
        return divided_up(shape.steps, step) * divided_up(shape.rows, row) * divided_up(shape.columns, column);
    };
    // Smaller tiles read more of their neighbours, and are worth it where multiprocessors would have nothing to do.
    while (shape.clips * tiles() < limits.multiprocessors && (step > 4 || row > 4)) {
        if (row >= step)
            row = even(shape.rows, (row + 1) / 2);
        else
            step = even(shape.steps, (step + 1) / 2);
    }
    constexpr long long kMost = 0x7fffffff;
    if (tiles() > kMost) {
        report("a clip of %lldx%lldx%lld voxels has too many tiles", shape.steps, shape.rows, shape.columns);
        return false;
    }
    const long long groups = tiles() < kMaxGroups ? tiles() : kMaxGroups;
    long long threads = 2 * kWarp;
    while (threads < step * column && threads < kMaxThreads) threads *= 2;
    const long long blocks = shape.clips * groups;
    *plan = {step, row, column, groups, blocks < kMost ? blocks : kMost, threads,
             kPartBytes * (threads + kSlots) + 4 * (step + 2) * (row + 2) * (column + 2)};
    return true;
}

// Enough on any device and for any smaller map: an engine may be built for a range of shapes.
std::size_t partial_bytes(long long clips) { return std::size_t(clips * kMaxGroups * kSlots * kPartBytes); }

bool shape_of(const Dims& dims, Shape* shape) noexcept {
    if (dims.nbDims != 4 && dims.nbDims != 5) {
        report("relevance must be [B,C,T,H,W] or [B,T,H,W], got %d axes", int(dims.nbDims));
        return false;
    }
    const bool summed = dims.nbDims == 4;
    const auto* last = dims.d + dims.nbDims - 3;
    *shape = {dims.d[0], summed ? 1 : dims.d[1], last[0], last[1], last[2]};
    if (shape->clips < 1 || shape->channels < 1 || shape->rows < 1 || shape->columns < 1) {
        report("relevance must hold at least one voxel on every axis");
        return false;
    }
    if (shape->steps < 2) {
        report("relevance must have at least 2 time steps (the third axis from the end), got %lld", shape->steps);
        return false;
    }
    constexpr long long kMost = 1LL << 30;
    if (shape->channels >= kMost || shape->steps >= kMost || shape->rows >= kMost || shape->columns >= kMost) {
        report("relevance must have fewer than 2^30 channels, steps, rows and columns");
        return false;
    }
    return true;
}

// ---- settings ----

constexpr const char* kSigns[] = {"absolute", "rising", "falling"};
constexpr const char* kSigmas[] = {"signed", "absolute"};
constexpr const char* kBorders[] = {"replicate", "zero"};
constexpr const char* kNormalisations[] = {"none", "author-2020"};

struct Setting {
    const char* name;
    const char* const* values;
    int count;
};
constexpr Setting kSettings[] = {
    {"sign", kSigns, 3}, {"sigma", kSigmas, 2}, {"border", kBorders, 2}, {"normalise", kNormalisations, 2}};
constexpr int kSettingCount = 4, kFieldCount = 1 + kSettingCount;

struct Settings {
    float n_sigma = 4.0f;
    int chosen[kSettingCount] = {0, 0, 0, 0};

    bool is_default() const {
        for (int index : chosen)
            if (index != 0) return false;
        return true;
    }
    int flags(bool calibrated) const {
        const bool zero = chosen[2] == 1;
        return (chosen[0] == 1 ? kRising : 0) | (chosen[0] == 2 ? kFalling : 0) | (chosen[1] == 1 ? kSigmaOfAbs : 0) |
               (zero ? kZeroBorder : 0) | (zero && chosen[3] == 1 ? kShift : 0) | (calibrated ? kCalibrated : 0);
    }

    bool read(const PluginField& field) noexcept {
        if (!field.name || !field.data) {
            report("a field has no name or no data");
            return false;
        }
        if (std::strcmp(field.name, "n_sigma") == 0) {
            if (field.type != PluginFieldType::kFLOAT32 || field.length != 1) {
                report("n_sigma must be one float32");
                return false;
            }
            std::memcpy(&n_sigma, field.data, sizeof n_sigma);
            if (std::isfinite(n_sigma) && n_sigma >= 0.0f) return true;
            report("n_sigma must be finite and 0 or more, got %g", double(n_sigma));
            return false;
        }
        for (int i = 0; i < kSettingCount; ++i)
            if (std::strcmp(field.name, kSettings[i].name) == 0) return choose(i, field);
        report("no field '%.80s'; there are n_sigma, sign, sigma, border, normalise", field.name);
        return false;
    }

  private:
    bool choose(int setting, const PluginField& field) noexcept {
        const char* text = static_cast<const char*>(field.data);
        // Parsers count the zero behind a string, or do not.
        std::size_t length = field.type == PluginFieldType::kCHAR && field.length > 0 ? std::size_t(field.length) : 0;
        while (length > 0 && text[length - 1] == '\0') --length;
        for (int i = 0; i < kSettings[setting].count; ++i) {
            const char* value = kSettings[setting].values[i];
            if (length == std::strlen(value) && std::memcmp(text, value, length) == 0) {
                chosen[setting] = i;
                return true;
            }
        }
        report("%s cannot be '%.*s'", kSettings[setting].name, int(length < 80 ? length : 80), text);
        return false;
    }
};

}  // namespace
}  // namespace selrel
