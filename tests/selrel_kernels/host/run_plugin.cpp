// Runs the plugin of motion_plugin.cu on the host, with the calls that TensorRT makes, in their order.
//
//   run_plugin CASES RESULTS   a case is a Header, its fields as text, the map, and the thresholds where there are any. A
//                              result is the stage that refused it, 0 for none; then motion relevance, and mask as int32
//   run_plugin                 lines "B C T H W multiprocessors shared_memory" in, the figures of the plan out
//
// Buffers, the workspace too, have exactly the size that the plugin asks for, so that AddressSanitizer finds an access
// outside. SOURCE names the .cu file.
#include SOURCE

#include "registry.h"

#include <memory>
#include <string>

namespace nv = nvinfer1;

struct Header {
    std::int64_t type, rank, dims[5], thresholds, multiprocessors, shared_memory, clips_told, field_bytes;
};

struct Log final : nv::ILogger, nv::ILoggerFinder {
    int index = 0;
    void log(Severity severity, const char* text) noexcept override {
        if (severity != Severity::kERROR) host::fail("a message that is no error");
        std::printf("case %d: %s\n", index, text);
    }
    nv::ILogger* findLogger() override { return this; }
};

extern "C" nv::ILogger* getLogger() noexcept { return nullptr; }

static void read(std::FILE* file, void* to, std::size_t bytes) {
    if (bytes && std::fread(to, 1, bytes, file) != bytes) host::fail("the file of cases ends too early");
}

// Fields and what they point to, as a parser or an engine would hold them; nothing is zero-terminated but names.
struct Fields {
    std::vector<std::string> names;
    std::vector<std::unique_ptr<char[]>> values;
    std::vector<nv::PluginField> fields;
    nv::PluginFieldCollection collection;

    void add(const std::string& name, const void* data, std::size_t bytes, nv::PluginFieldType type, std::int32_t length) {
        names.push_back(name);
        values.emplace_back(new char[bytes]);
        std::memcpy(values.back().get(), data, bytes);
        fields.emplace_back(nullptr, values.back().get(), type, length);
    }
    const nv::PluginFieldCollection* all() {
        for (std::size_t i = 0; i < names.size(); ++i) fields[i].name = names[i].c_str();
        collection.nbFields = std::int32_t(fields.size());
        collection.fields = fields.data();
        return &collection;
    }
};

// Lines of name:type=value.
static void parse(const std::string& text, Fields& into) {
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = text.find('\n', at), colon = text.find(':', at), equals = text.find('=', at);
        const std::string name = text.substr(at, colon - at), value = text.substr(equals + 1, end - equals - 1);
        if (text[colon + 1] == 'f') {
            const float number = std::strtof(value.c_str(), nullptr);
            into.add(name, &number, sizeof number, nv::PluginFieldType::kFLOAT32, 1);
        } else if (text[colon + 1] == 'i') {
            const std::int32_t number = std::atoi(value.c_str());
            into.add(name, &number, sizeof number, nv::PluginFieldType::kINT32, 1);
        } else {
            into.add(name, value.data(), value.size(), nv::PluginFieldType::kCHAR, std::int32_t(value.size()));
        }
        at = end + 1;
    }
}

template <class T>
static T* capability(nv::IPluginV3& plugin, nv::PluginCapabilityType type) {
    return static_cast<T*>(plugin.getCapabilityInterface(type));
}

static std::size_t bytes_of(nv::DataType type) {
    return type == nv::DataType::kFLOAT || type == nv::DataType::kINT32 ? 4 : type == nv::DataType::kINT8 ? 1 : 2;
}

static nv::Dims dims_of(const nv::DimsExprs& shape, const nv::DimsExprs& map, const nv::Dims& known) {
    nv::Dims made{shape.nbDims, {}};
    for (int i = 0; i < shape.nbDims; ++i)
        for (int k = 0; k < map.nbDims; ++k)
            if (shape.d[i] == map.d[k]) made.d[i] = known.d[k];
    return made;
}

static std::size_t count_of(const nv::Dims& dims) {
    std::size_t count = 1;
    for (int i = 0; i < dims.nbDims; ++i) count *= std::size_t(dims.d[i]);
    return count;
}

// The map, the thresholds, motion relevance and mask: description and memory of each.
struct Tensors {
    std::vector<nv::PluginTensorDesc> desc;
    std::vector<std::unique_ptr<char[]>> memory;

    void add(const nv::Dims& dims, nv::DataType type) {
        desc.push_back({dims, type, nv::TensorFormat::kLINEAR, -1.0f});
        memory.emplace_back(new char[count_of(dims) * bytes_of(type)]);
        std::memset(memory.back().get(), 0xff, count_of(dims) * bytes_of(type));
    }
};

static std::int64_t run_case(const Header& c, Fields& given, Tensors& tensors, nv::IPluginCreatorV3One& creator) {
    const std::int32_t inputs = std::int32_t(tensors.desc.size());
    std::unique_ptr<nv::IPluginV3> built(creator.createPlugin("name", given.all(), nv::TensorRTPhase::kBUILD));
    if (!built) return 1;
    auto* core = capability<nv::IPluginV3OneCore>(*built, nv::PluginCapabilityType::kCORE);
    if (std::strcmp(core->getPluginName(), creator.getPluginName())) host::fail("creator and plugin differ in their names");
    built.reset(built->clone());
    auto* build = capability<nv::IPluginV3OneBuild>(*built, nv::PluginCapabilityType::kBUILD);
    if (build->getNbOutputs() != 2) host::fail("not 2 outputs");

    const nv::DataType in_types[] = {tensors.desc[0].type, nv::DataType::kFLOAT};
    nv::DataType out_types[2];
    // Dimensions as TensorRT hands them over: opaque.
    const auto opaque = [](int i) { return reinterpret_cast<const nv::IDimensionExpr*>(std::intptr_t(8 * (i + 1))); };
    nv::DimsExprs shapes[2]{{std::int32_t(c.rank), {}}, {1, {opaque(20)}}}, made[2];
    for (int i = 0; i < c.rank; ++i) shapes[0].d[i] = opaque(i);
    auto& unused = *reinterpret_cast<nv::IExprBuilder*>(&shapes);
    if (build->getOutputDataTypes(out_types, 2, in_types, inputs) ||
        build->getOutputShapes(shapes, inputs, nullptr, 0, made, 2, unused))
        return 2;
    for (int i = 0; i < 2; ++i) tensors.add(dims_of(made[i], shapes[0], tensors.desc[0].dims), out_types[i]);

    std::vector<nv::DynamicPluginTensorDesc> dynamic;
    for (const auto& tensor : tensors.desc) dynamic.push_back({tensor, tensor.dims, tensor.dims, tensor.dims});
    for (int position = 0; position < inputs + 2; ++position) {
        if (!build->supportsFormatCombination(position, dynamic.data(), inputs, 2)) return 3;
        for (const auto wrong : {nv::DataType::kBOOL, nv::DataType::kINT8}) {
            auto other = dynamic;
            other[position].desc.type = wrong;
            if (build->supportsFormatCombination(position, other.data(), inputs, 2)) host::fail("a type too many");
        }
        auto other = dynamic;
        other[position].desc.format = nv::TensorFormat::kCHW2;
        if (build->supportsFormatCombination(position, other.data(), inputs, 2)) host::fail("a format too many");
    }
    if (build->configurePlugin(dynamic.data(), inputs, dynamic.data() + inputs, 2)) return 4;
    const std::size_t workspace_bytes = build->getWorkspaceSize(dynamic.data(), inputs, dynamic.data() + inputs, 2);

    Fields kept;
    auto* to_keep = capability<nv::IPluginV3OneRuntime>(*built, nv::PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
    for (int i = 0; i < to_keep->nbFields; ++i) {
        const nv::PluginField& field = to_keep->fields[i];
        const std::size_t bytes = std::size_t(field.length) * (field.type == nv::PluginFieldType::kFLOAT32 ? 4 : 1);
        kept.add(field.name, field.data, bytes, field.type, field.length);
    }
    built.reset();
    std::unique_ptr<nv::IPluginV3> loaded(creator.createPlugin("name", kept.all(), nv::TensorRTPhase::kRUNTIME));
    if (!loaded) return 5;
    auto* first = capability<nv::IPluginV3OneRuntime>(*loaded, nv::PluginCapabilityType::kRUNTIME);
    std::unique_ptr<nv::IPluginV3> attached(first->attachToContext(nullptr));
    loaded.reset();
    auto* runtime = capability<nv::IPluginV3OneRuntime>(*attached, nv::PluginCapabilityType::kRUNTIME);

    std::vector<void*> memory;
    for (const auto& tensor : tensors.memory) memory.push_back(tensor.get());
    std::unique_ptr<char[]> workspace(new char[workspace_bytes]);
    std::memset(workspace.get(), 0xff, workspace_bytes);
    const auto enqueue = [&](void* with) {
        return runtime->enqueue(tensors.desc.data(), tensors.desc.data() + inputs, memory.data(), memory.data() + inputs,
                                with, host::device.stream);
    };
    const int before = host::device.launches;
    if (enqueue(workspace.get()) == 0) host::fail("it runs without onShapeChange()");
    auto told = tensors.desc;
    // Of every other case, the shape at last differs from the one that was announced.
    if (c.clips_told) told[0].dims.d[0] = c.clips_told;
    if (runtime->onShapeChange(told.data(), inputs, told.data() + inputs, 2)) return 6;
    if (enqueue(nullptr) == 0) host::fail("it runs without a workspace");
    if (host::device.launches != before) host::fail("it launched before it looked");
    return enqueue(workspace.get()) ? 7 : 0;
}

static int print_plans() {
    selrel::Shape shape;
    selrel::Limits limits;
    while (std::scanf("%lld %lld %lld %lld %lld %d %d", &shape.clips, &shape.channels, &shape.steps, &shape.rows,
                      &shape.columns, &limits.multiprocessors, &limits.shared_memory) == 7) {
        selrel::Plan plan{};
        if (!selrel::plan_launches(shape, limits, &plan)) return 1;
        std::printf("%lld %lld %lld %lld %lld %lld %lld\n", plan.tile_steps, plan.tile_rows, plan.tile_columns, plan.groups,
                    plan.grid, plan.threads, plan.shared_bytes);
    }
    return 0;
}

int main(int count, char** arguments) {
    if (count == 1) return print_plans();
    std::FILE* cases = count == 3 ? std::fopen(arguments[1], "rb") : nullptr;
    std::FILE* results = count == 3 ? std::fopen(arguments[2], "wb") : nullptr;
    if (!cases || !results) host::fail("run_plugin CASES RESULTS");

    if (!registry().held) host::fail("the library does not register itself when it is opened");
    std::int32_t creators = 0;
    auto* creator = static_cast<nv::IPluginCreatorV3One*>(getCreators(creators)[0]);
    if (creators != 1 || registry().held || std::strcmp(creator->getPluginName(), "SelectMotion"))
        host::fail("loadLibrary() would find it registered already, or not at all");
    static Log log;
    setLoggerFinder(&log);

    Header c;
    for (; std::fread(&c, sizeof c, 1, cases) == 1; ++log.index) {
        host::device.multiprocessors = int(c.multiprocessors);
        host::device.shared_memory = int(c.shared_memory);
        host::device.stream = reinterpret_cast<cudaStream_t>(std::intptr_t(64 + log.index));
        host::device.allowed.clear();
        std::string text(std::size_t(c.field_bytes), ' ');
        read(cases, &text[0], text.size());
        Fields fields;
        parse(text, fields);
        nv::Dims dims{std::int32_t(c.rank), {}};
        std::copy(c.dims, c.dims + c.rank, dims.d);
        Tensors tensors;
        tensors.add(dims, nv::DataType(c.type));
        read(cases, tensors.memory[0].get(), count_of(dims) * bytes_of(nv::DataType(c.type)));
        if (c.thresholds) {
            tensors.add({1, {c.thresholds}}, nv::DataType::kFLOAT);
            read(cases, tensors.memory[1].get(), std::size_t(c.thresholds) * 4);
        }
        const std::size_t inputs = tensors.desc.size();
        const std::int64_t stage = run_case(c, fields, tensors, *creator);
        std::fwrite(&stage, sizeof stage, 1, results);
        for (std::size_t i = inputs; stage == 0 && i < tensors.desc.size(); ++i)
            std::fwrite(tensors.memory[i].get(), bytes_of(tensors.desc[i].type), count_of(tensors.desc[i].dims), results);
    }
    std::fclose(results);
    std::fclose(cases);
    return 0;
}
