// The kernels of select_motion.cu as a TensorRT plugin: SelectMotion, version 1, for TensorRT 10 and later.
//
//   inputs   relevance   float32, float16 or bfloat16 [B,C,T,H,W] or [B,T,H,W]
//            thresholds  float32 [T], where they are calibrated; without this input n·σ decides
//   outputs  motion      as relevance
//            mask        int32 [B,T,H,W], 0 or 1: plugins have neither booleans nor bytes
//   fields   n_sigma     float32
//            sign, sigma, border, normalise   characters, the names of reference.py
//
// Thresholds are an input because TensorRT then holds them on the device: a plugin that keeps device memory of its own
// would have to allocate it for each context. Launches are those of plan.py; a test holds both against each other.
#include <NvInferRuntime.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <atomic>
#include <cmath>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>

#include "select_motion.cu"

// Weak: the library is not linked to TensorRT, which programs load in more than one way and by more than one name.
extern "C" __attribute__((weak)) nvinfer1::IPluginRegistry* getPluginRegistry() noexcept;
extern "C" __attribute__((weak)) nvinfer1::ILogger* getLogger() noexcept;

#include "motion_plugin.cuh"

namespace selrel {
namespace {

// The mask as TensorRT takes it.
__global__ void widen_mask(const unsigned char* from, int* to, long long count) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) to[i] = from[i];
}

class SelectMotion final : public nvinfer1::IPluginV3,
                           public nvinfer1::IPluginV3OneCore,
                           public nvinfer1::IPluginV3OneBuild,
                           public nvinfer1::IPluginV3OneRuntime {
  public:
    explicit SelectMotion(const Settings& settings) noexcept : settings_(settings) {}
    SelectMotion(const SelectMotion& other) noexcept : SelectMotion(other.settings_) {}
    SelectMotion& operator=(const SelectMotion&) = delete;

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    nvinfer1::IPluginV3* clone() noexcept override {
        SelectMotion* made = new (std::nothrow) SelectMotion(*this);
        if (!made) report("no memory for a copy of the plugin");
        return made;
    }

    const char* getPluginName() const noexcept override { return kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

    std::int32_t getNbOutputs() const noexcept override { return 2; }

    std::int32_t getOutputDataTypes(DataType* outputs, std::int32_t output_count, const DataType* inputs,
                                    std::int32_t input_count) const noexcept override {
        if (!counts_fit(input_count, output_count)) return kRefused;
        outputs[0] = inputs[0];
        outputs[1] = DataType::kINT32;
        return 0;
    }

    std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                                 const nvinfer1::DimsExprs*, std::int32_t, nvinfer1::DimsExprs* outputs,
                                 std::int32_t output_count, nvinfer1::IExprBuilder&) noexcept override {
        if (!counts_fit(input_count, output_count)) return kRefused;
        const nvinfer1::DimsExprs& map = inputs[0];
        if (map.nbDims != 4 && map.nbDims != 5) {
            report("relevance must be [B,C,T,H,W] or [B,T,H,W], got %d axes", int(map.nbDims));
            return kRefused;
        }
        outputs[0] = map;
        outputs[1].nbDims = 4;
        outputs[1].d[0] = map.d[0];
        for (int i = 1; i < 4; ++i) outputs[1].d[i] = map.d[map.nbDims - 4 + i];
        return 0;
    }

    bool supportsFormatCombination(std::int32_t position, const DynamicPluginTensorDesc* tensors,
                                   std::int32_t input_count, std::int32_t) noexcept override {
        const PluginTensorDesc& tensor = tensors[position].desc;
        if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
        if (position == 0) return element_bytes(tensor.type) != 0;
        if (position < input_count) return tensor.type == DataType::kFLOAT;
        return tensor.type == (position == input_count ? tensors[0].desc.type : DataType::kINT32);
    }

    std::int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                                 const DynamicPluginTensorDesc*, std::int32_t output_count) noexcept override {
        Shape shape;
        if (!counts_fit(input_count, output_count)) return kRefused;
        for (const Dims* dims : {&inputs[0].min, &inputs[0].max}) {
            if (!shape_of(*dims, &shape)) return kRefused;
            if (input_count == 2 && !thresholds_fit(inputs[1].desc.dims, shape)) return kRefused;
        }
        return 0;
    }

    std::size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, std::int32_t, const DynamicPluginTensorDesc*,
                                 std::int32_t) const noexcept override {
        Shape shape;
        if (!shape_of(inputs[0].max, &shape)) return 0;
        return partial_bytes(shape.clips) + std::size_t(shape.clips * shape.voxels());
    }

    std::int32_t onShapeChange(const PluginTensorDesc* inputs, std::int32_t input_count, const PluginTensorDesc*,
                               std::int32_t output_count) noexcept override {
        Shape shape;
        if (!counts_fit(input_count, output_count) || !shape_of(inputs[0].dims, &shape)) return kRefused;
        calibrated_ = input_count == 2;
        if (calibrated_ && !thresholds_fit(inputs[1].dims, shape)) return kRefused;
        return prepare(shape, inputs[0].type) ? 0 : kRefused;
    }

    std::int32_t enqueue(const PluginTensorDesc* input_desc, const PluginTensorDesc*, const void* const* inputs,
                         void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        Shape shape;
        if (!shape_of(input_desc[0].dims, &shape)) return kRefused;
        if (!prepared_) {
            report("enqueue() was called before onShapeChange()");
            return kRefused;
        }
        if ((!(shape == shape_) || input_desc[0].type != type_) && !prepare(shape, input_desc[0].type)) return kRefused;
        if (!workspace || !inputs[0] || !outputs[0] || !outputs[1] || (calibrated_ && !inputs[1])) {
            report("enqueue() was given no memory for a tensor or the workspace");
            return kRefused;
        }
        auto* mask = static_cast<unsigned char*>(workspace) + partial_bytes(shape.clips);
        bool done = false;
        switch (type_) {
            case DataType::kFLOAT:
                done = select<float>(select_motion_measure_f32, select_motion_apply_f32, inputs, outputs, workspace,
                                     mask, stream);
                break;
            case DataType::kHALF:
                done = select<F16>(select_motion_measure_f16, select_motion_apply_f16, inputs, outputs, workspace, mask,
                                   stream);
                break;
            case DataType::kBF16:
                done = select<Bf16>(select_motion_measure_bf16, select_motion_apply_bf16, inputs, outputs, workspace,
                                    mask, stream);
                break;
            default: report("relevance must be float32, float16 or bfloat16");
        }
        if (!done) return kRefused;
        const long long count = shape.clips * shape.voxels(), blocks = divided_up(count, 256);
        return launch(widen_mask, blocks < 65535 ? blocks : 65535, 256, 0, stream, mask, static_cast<int*>(outputs[1]),
                      count)
                   ? 0
                   : kRefused;
    }

    // A clone has its own plan: contexts differ in their shapes.
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
        fields_[0] = PluginField("n_sigma", &settings_.n_sigma, PluginFieldType::kFLOAT32, 1);
        for (int i = 0; i < kSettingCount; ++i) {
            const char* value = kSettings[i].values[settings_.chosen[i]];
            fields_[1 + i] =
                PluginField(kSettings[i].name, value, PluginFieldType::kCHAR, std::int32_t(std::strlen(value)));
        }
        collection_.nbFields = kFieldCount;
        collection_.fields = fields_;
        return &collection_;
    }

  private:
    static std::size_t element_bytes(DataType type) {
        return type == DataType::kFLOAT ? 4 : type == DataType::kHALF || type == DataType::kBF16 ? 2 : 0;
    }

    bool counts_fit(std::int32_t inputs, std::int32_t outputs) const noexcept {
        if ((inputs != 1 && inputs != 2) || outputs != 2) {
            report("takes relevance, perhaps thresholds, and makes 2 outputs; got %d and %d", int(inputs), int(outputs));
            return false;
        }
        if (inputs == 2 && !settings_.is_default()) {
            report("calibrated thresholds go with the default settings alone");
            return false;
        }
        return true;
    }

    static bool thresholds_fit(const Dims& dims, const Shape& shape) noexcept {
        if (dims.nbDims == 1 && dims.d[0] == shape.steps) return true;
        report("thresholds must be one per time step, %lld", shape.steps);
        return false;
    }

    bool prepare(const Shape& shape, DataType type) noexcept {
        Limits limits;
        int device = 0;
        prepared_ =
            worked(cudaGetDevice(&device), "no device") &&
            worked(cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device), "device") &&
            worked(cudaDeviceGetAttribute(&limits.shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                   "device") &&
            plan_launches(shape, limits, &plan_) && allow_shared_memory(type);
        shape_ = shape;
        type_ = type;
        return prepared_;
    }

    bool allow_shared_memory(DataType type) noexcept {
        const auto allow = [this](auto* measure, auto* apply) {
            const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
            const int bytes = int(plan_.shared_bytes);
            return worked(cudaFuncSetAttribute(measure, attribute, bytes), "the shared memory of the first launch") &&
                   worked(cudaFuncSetAttribute(apply, attribute, bytes), "the shared memory of the second launch");
        };
        switch (type) {
            case DataType::kFLOAT: return allow(select_motion_measure_f32, select_motion_apply_f32);
            case DataType::kHALF: return allow(select_motion_measure_f16, select_motion_apply_f16);
            case DataType::kBF16: return allow(select_motion_measure_bf16, select_motion_apply_bf16);
            default: report("relevance must be float32, float16 or bfloat16");
        }
        return false;
    }

    template <class Kernel, class... Values>
    static bool launch(Kernel* kernel, long long grid, long long threads, long long shared_bytes, cudaStream_t stream,
                       const Values&... values) noexcept {
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(unsigned(grid), 1, 1);
        config.blockDim = dim3(unsigned(threads), 1, 1);
        config.dynamicSmemBytes = std::size_t(shared_bytes);
        config.stream = stream;
        return worked(cudaLaunchKernelEx(&config, kernel, values...), "a launch failed");
    }

    template <class T, class Kernel>
    bool select(Kernel* measure, Kernel* apply, const void* const* inputs, void* const* outputs, void* workspace,
                unsigned char* mask, cudaStream_t stream) noexcept {
        const auto stage = [&](Kernel* kernel) {
            const long long row = shape_.columns, step = shape_.rows * row, channel = shape_.steps * step;
            return launch(kernel, plan_.grid, plan_.threads, plan_.shared_bytes, stream,
                          static_cast<const T*>(inputs[0]), static_cast<T*>(outputs[0]), mask,
                          static_cast<float*>(workspace), calibrated_ ? static_cast<const float*>(inputs[1]) : nullptr,
                          shape_.clips, int(shape_.channels), int(shape_.steps), int(shape_.rows), int(shape_.columns),
                          shape_.channels * channel, channel, step, row, 1LL, settings_.n_sigma,
                          settings_.flags(calibrated_), int(plan_.tile_steps), int(plan_.tile_rows),
                          int(plan_.tile_columns), int(plan_.groups));
        };
        return stage(measure) && stage(apply);
    }

    Settings settings_;
    bool calibrated_ = false, prepared_ = false;
    Shape shape_{0, 0, 0, 0, 0};
    Plan plan_{};
    DataType type_ = DataType::kFLOAT;
    PluginField fields_[kFieldCount];
    nvinfer1::PluginFieldCollection collection_;
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
  public:
    Creator() noexcept {
        fields_[0] = PluginField("n_sigma", nullptr, PluginFieldType::kFLOAT32, 1);
        for (int i = 0; i < kSettingCount; ++i)
            fields_[1 + i] = PluginField(kSettings[i].name, nullptr, PluginFieldType::kCHAR, 0);
        collection_.nbFields = kFieldCount;
        collection_.fields = fields_;
    }

    nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* given,
                                      nvinfer1::TensorRTPhase) noexcept override {
        Settings settings;
        for (std::int32_t i = 0; given && i < given->nbFields; ++i)
            if (!settings.read(given->fields[i])) return nullptr;
        SelectMotion* made = new (std::nothrow) SelectMotion(settings);
        if (!made) report("no memory for the plugin");
        return made;
    }
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const char* getPluginName() const noexcept override { return kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

  private:
    PluginField fields_[kFieldCount];
    nvinfer1::PluginFieldCollection collection_;
};

Creator& creator() noexcept {
    static Creator one;
    return one;
}

#define SELREL_TEXT_OF(value) #value
#define SELREL_TEXT(value) SELREL_TEXT_OF(value)

// TensorRT's registry, also where the program keeps TensorRT out of the global scope; null where it is not loaded.
nvinfer1::IPluginRegistry* registry() noexcept {
    if (getPluginRegistry) return getPluginRegistry();
    void* tensorrt = dlopen("libnvinfer.so." SELREL_TEXT(NV_TENSORRT_MAJOR), RTLD_LAZY | RTLD_NOLOAD);
    void* found = tensorrt ? dlsym(tensorrt, "getPluginRegistry") : nullptr;
    return found ? reinterpret_cast<decltype(&getPluginRegistry)>(found)() : nullptr;
}

// Triton and polygraphy open a library and expect that it registers itself.
struct Registered {
    bool yes = false;
    Registered() noexcept {
        if (nvinfer1::IPluginRegistry* found = registry()) yes = found->registerCreator(creator(), kNamespace);
    }
} registered;

}  // namespace
}  // namespace selrel

// What `trtexec --dynamicPlugins` and loadLibrary() look for. They register what getCreators() returns, and refuse what
// is registered already.
extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    std::int32_t& count) noexcept {
    if (selrel::registered.yes) selrel::registry()->deregisterCreator(selrel::creator());
    selrel::registered.yes = false;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&selrel::creator()};
    count = 1;
    return creators;
}

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept {
    selrel::logger_finder.store(finder);
}
