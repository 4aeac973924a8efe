// TensorRT's plugin registry for one creator: it refuses what is registered already, as TensorRT does.
#pragma once

#include <NvInferRuntime.h>

struct Registry final : nvinfer1::IPluginRegistry {
    const nvinfer1::IPluginCreatorInterface* held = nullptr;

    bool registerCreator(nvinfer1::IPluginCreatorInterface& creator, const char*) noexcept override {
        if (held) return false;
        held = &creator;
        return true;
    }
    bool deregisterCreator(const nvinfer1::IPluginCreatorInterface& creator) noexcept override {
        if (held != &creator) return false;
        held = nullptr;
        return true;
    }
};

inline Registry& registry() {
    static Registry one;
    return one;
}

extern "C" nvinfer1::IPluginRegistry* getPluginRegistry() noexcept { return &registry(); }
extern "C" int held_creators() { return registry().held != nullptr; }
