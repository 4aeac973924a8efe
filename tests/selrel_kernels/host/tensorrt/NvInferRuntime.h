// What motion_plugin.cu uses of TensorRT's interface, for the tests: no TensorRT is needed to build it with this.
//
// Classes have the order of virtual functions, the values and the layouts of TensorRT 10, so that a library built with
// this header can be handed to a real TensorRT, where one is installed. It is no substitute for TensorRT's own header.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#define NV_TENSORRT_MAJOR 10

namespace nvinfer1 {

using AsciiChar = char;

enum class DataType : std::int32_t {
    kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBOOL = 4, kUINT8 = 5, kFP8 = 6, kBF16 = 7, kINT64 = 8, kINT4 = 9
};
enum class TensorFormat : std::int32_t { kLINEAR = 0, kCHW2 = 1 };

struct Dims {
    static constexpr std::int32_t MAX_DIMS = 8;
    std::int32_t nbDims;
    std::int64_t d[MAX_DIMS];
};

class IDimensionExpr;
class IExprBuilder;
struct DimsExprs {
    std::int32_t nbDims;
    const IDimensionExpr* d[Dims::MAX_DIMS];
};

struct PluginTensorDesc {
    Dims dims;
    DataType type;
    TensorFormat format;
    float scale;
};
struct DynamicPluginTensorDesc {
    PluginTensorDesc desc;
    Dims min, max, opt;
};

enum class PluginFieldType : std::int32_t {
    kFLOAT16 = 0, kFLOAT32 = 1, kFLOAT64 = 2, kINT8 = 3, kINT16 = 4, kINT32 = 5, kCHAR = 6, kDIMS = 7, kUNKNOWN = 8
};
class PluginField {
  public:
    const AsciiChar* name;
    const void* data;
    PluginFieldType type;
    std::int32_t length;

    PluginField(const AsciiChar* name = nullptr, const void* data = nullptr,
                PluginFieldType type = PluginFieldType::kUNKNOWN, std::int32_t length = 0) noexcept
        : name(name), data(data), type(type), length(length) {}
};
struct PluginFieldCollection {
    std::int32_t nbFields{};
    const PluginField* fields{};
};

enum class TensorRTPhase : std::int32_t { kBUILD = 0, kRUNTIME = 1 };
enum class PluginCapabilityType : std::int32_t { kCORE = 0, kBUILD = 1, kRUNTIME = 2 };

class ILogger {
  public:
    enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual void log(Severity severity, const AsciiChar* message) noexcept = 0;
    virtual ~ILogger() = default;
};
class ILoggerFinder {
  public:
    virtual ILogger* findLogger() = 0;

  protected:
    virtual ~ILoggerFinder() = default;
};

enum class APILanguage : std::int32_t { kCPP = 0, kPYTHON = 1 };
struct InterfaceInfo {
    const char* kind;
    std::int32_t major, minor;
};
class IVersionedInterface {
  public:
    virtual APILanguage getAPILanguage() const noexcept { return APILanguage::kCPP; }
    virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
    virtual ~IVersionedInterface() noexcept = default;
};

class IPluginCapability : public IVersionedInterface {};
class IPluginResourceContext;

class IPluginV3 : public IVersionedInterface {
  public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN", 1, 0}; }
    virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept = 0;
    virtual IPluginV3* clone() noexcept = 0;
};

class IPluginV3OneCore : public IPluginCapability {
  public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_CORE", 1, 0}; }
    virtual const AsciiChar* getPluginName() const noexcept = 0;
    virtual const AsciiChar* getPluginVersion() const noexcept = 0;
    virtual const AsciiChar* getPluginNamespace() const noexcept = 0;
};

class IPluginV3OneBuild : public IPluginCapability {
  public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_BUILD", 1, 0}; }
    virtual std::int32_t configurePlugin(const DynamicPluginTensorDesc* in, std::int32_t nbInputs,
                                         const DynamicPluginTensorDesc* out, std::int32_t nbOutputs) noexcept = 0;
    virtual std::int32_t getOutputDataTypes(DataType* outputTypes, std::int32_t nbOutputs, const DataType* inputTypes,
                                            std::int32_t nbInputs) const noexcept = 0;
    virtual std::int32_t getOutputShapes(const DimsExprs* inputs, std::int32_t nbInputs, const DimsExprs* shapeInputs,
                                         std::int32_t nbShapeInputs, DimsExprs* outputs, std::int32_t nbOutputs,
                                         IExprBuilder& exprBuilder) noexcept = 0;
    virtual bool supportsFormatCombination(std::int32_t pos, const DynamicPluginTensorDesc* inOut,
                                           std::int32_t nbInputs, std::int32_t nbOutputs) noexcept = 0;
    virtual std::int32_t getNbOutputs() const noexcept = 0;
    virtual std::size_t getWorkspaceSize(const DynamicPluginTensorDesc*, std::int32_t, const DynamicPluginTensorDesc*,
                                         std::int32_t) const noexcept {
        return 0;
    }
    virtual std::int32_t getValidTactics(std::int32_t*, std::int32_t) noexcept { return 0; }
    virtual std::int32_t getNbTactics() noexcept { return 0; }
    virtual const char* getTimingCacheID() noexcept { return nullptr; }
    virtual std::int32_t getFormatCombinationLimit() noexcept { return 100; }
    virtual const char* getMetadataString() noexcept { return nullptr; }
};

class IPluginV3OneRuntime : public IPluginCapability {
  public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_RUNTIME", 1, 0}; }
    virtual std::int32_t setTactic(std::int32_t) noexcept { return 0; }
    virtual std::int32_t onShapeChange(const PluginTensorDesc* in, std::int32_t nbInputs, const PluginTensorDesc* out,
                                       std::int32_t nbOutputs) noexcept = 0;
    virtual std::int32_t enqueue(const PluginTensorDesc* inputDesc, const PluginTensorDesc* outputDesc,
                                 const void* const* inputs, void* const* outputs, void* workspace,
                                 cudaStream_t stream) noexcept = 0;
    virtual IPluginV3* attachToContext(IPluginResourceContext* context) noexcept = 0;
    virtual const PluginFieldCollection* getFieldsToSerialize() noexcept = 0;
};

class IPluginCreatorInterface : public IVersionedInterface {};
class IPluginCreatorV3One : public IPluginCreatorInterface {
  public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN CREATOR_V3ONE", 1, 0}; }
    virtual IPluginV3* createPlugin(const AsciiChar* name, const PluginFieldCollection* fc,
                                    TensorRTPhase phase) noexcept = 0;
    virtual const PluginFieldCollection* getFieldNames() noexcept = 0;
    virtual const AsciiChar* getPluginName() const noexcept = 0;
    virtual const AsciiChar* getPluginVersion() const noexcept = 0;
    virtual const AsciiChar* getPluginNamespace() const noexcept = 0;
};

// Of TensorRT's registry, what the plugin calls; the order of its functions is not that of TensorRT.
class IPluginRegistry {
  public:
    virtual bool registerCreator(IPluginCreatorInterface& creator, const AsciiChar* pluginNamespace) noexcept = 0;
    virtual bool deregisterCreator(const IPluginCreatorInterface& creator) noexcept = 0;

  protected:
    virtual ~IPluginRegistry() noexcept = default;
};

}  // namespace nvinfer1

extern "C" nvinfer1::IPluginRegistry* getPluginRegistry() noexcept;
extern "C" nvinfer1::ILogger* getLogger() noexcept;
