// What motion_plugin.cu uses of CUDA's runtime, for a host compiler: launches run on cuda_on_host.h, one after the other.
// There is one device, whose figures a test sets; one stream, by which a launch on another one is found; and a kernel
// gets the dynamic shared memory that it was allowed, 48 KiB by default, and no more.
#pragma once

#include "../cuda_on_host.h"

#include <map>

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNoDevice = 100 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
    void* attrs;
    unsigned numAttrs;
};

namespace host {

struct Device {
    int multiprocessors = 0;  // 0: there is no device
    int shared_memory = 0;
    cudaStream_t stream = nullptr;
    std::map<void*, std::size_t> allowed;
    int launches = 0;
};
inline Device device;

}  // namespace host

inline const char* cudaGetErrorString(cudaError_t status) {
    return status == cudaErrorNoDevice ? "there is no device" : "a value is not valid";
}
inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return host::device.multiprocessors ? cudaSuccess : cudaErrorNoDevice;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
    *value = which == cudaDevAttrMultiProcessorCount ? host::device.multiprocessors : host::device.shared_memory;
    return device == 0 ? cudaSuccess : cudaErrorInvalidValue;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int value) {
    if (value < 0 || value > host::device.shared_memory) return cudaErrorInvalidValue;
    host::device.allowed[reinterpret_cast<void*>(kernel)] = std::size_t(value);
    return cudaSuccess;
}

template <class... Expected, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), Given&&... given) {
    const auto allowed = host::device.allowed.find(reinterpret_cast<void*>(kernel));
    constexpr std::size_t kDefault = 48 * 1024;
    const std::size_t most = allowed == host::device.allowed.end() ? kDefault : std::max(allowed->second, kDefault);
    if (config->dynamicSmemBytes > most || config->blockDim.x > 1024 || config->gridDim.x == 0 || config->numAttrs)
        return cudaErrorInvalidValue;
    if (config->stream != host::device.stream) host::fail("a launch is on another stream than it was told");
    ++host::device.launches;
    host::launch({config->gridDim.x, config->blockDim.x, 1, config->dynamicSmemBytes, 0, config->gridDim.x, 0},
                 [=] { kernel(static_cast<Expected>(given)...); });
    return cudaSuccess;
}
