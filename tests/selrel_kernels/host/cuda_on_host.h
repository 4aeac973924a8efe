// What a CUDA kernel uses of the language's built-ins, for a host compiler: include it before the .cu file.
//
// The threads of a block, or of a cluster of blocks, are fibers. A fiber runs until it reaches a barrier or ends; the
// barrier lets it go on when all threads have reached it. So a thread sees what others wrote before a barrier, and
// whether it sees what they write without one depends on the order, which launch() takes: first to last, last to first,
// or at random. A block runs as far as it can before the next block of its cluster does. Shared memory begins as NaN and
// has the launch's size, so that AddressSanitizer finds an access behind it. A barrier that not all threads reach ends
// the program.
#pragma once

#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SHARED_MEMORY(name) float* name = host::shared_memory()

struct Index {
    unsigned x, y, z;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
using std::max;
using std::min;

namespace host {

constexpr std::size_t kStack = 64 * 1024;

enum class State { kReady, kAtBlockBarrier, kAtClusterBarrier, kDone };

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(kStack);
    void* fake_stack = nullptr;
    unsigned thread = 0, block = 0;  // block: within the cluster
    State state = State::kDone;
};

struct Machine {
    ucontext_t scheduler;
    const void* scheduler_stack = nullptr;
    std::size_t scheduler_stack_size = 0;
    void* scheduler_fake_stack = nullptr;
    std::vector<Fiber*> fibers;  // of the cluster that runs
    Fiber* running = nullptr;
    std::vector<std::vector<float>> shared;  // of each block of the cluster
    unsigned first_block = 0;
    std::function<void()> kernel;
};
inline Machine machine;

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "cuda_on_host: %s\n", what);
    std::exit(3);
}

inline float* shared_memory() { return machine.shared[machine.running->block].data(); }

inline void leave(State state) {
    Fiber* fiber = machine.running;
    fiber->state = state;
    __sanitizer_start_switch_fiber(state == State::kDone ? nullptr : &fiber->fake_stack, machine.scheduler_stack,
                                   machine.scheduler_stack_size);
    swapcontext(&fiber->context, &machine.scheduler);
    __sanitizer_finish_switch_fiber(fiber->fake_stack, nullptr, nullptr);
}

inline void enter_fiber() {
    __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_size);
    machine.kernel();
    leave(State::kDone);
}

inline void resume(Fiber* fiber) {
    machine.running = fiber;
    threadIdx = {fiber->thread, 0, 0};
    blockIdx = {machine.first_block + fiber->block, 0, 0};
    __sanitizer_start_switch_fiber(&machine.scheduler_fake_stack, fiber->stack.data(), fiber->stack.size());
    swapcontext(&machine.scheduler, &fiber->context);
    __sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr);
}

// Let the fibers of a block, or of all blocks (block < 0), pass the barrier they all wait at.
inline void release(int block, State barrier) {
    std::size_t waiting = 0, all = 0;
    for (const Fiber* fiber : machine.fibers)
        if (block < 0 || int(fiber->block) == block) {
            ++all;
            waiting += fiber->state == barrier;
        }
    if (waiting != all) return;
    for (Fiber* fiber : machine.fibers)
        if (block < 0 || int(fiber->block) == block) fiber->state = State::kReady;
}

// Resume each fiber of a block that is ready, once. Return whether there was one.
inline bool run_until_barrier(int block) {
    bool moved = false;
    for (Fiber* fiber : machine.fibers)
        if (int(fiber->block) == block && fiber->state == State::kReady) {
            resume(fiber);
            moved = true;
        }
    return moved;
}

struct Launch {
    unsigned grid, threads, cluster;
    std::size_t shared_bytes;
    unsigned first, last;  // the blocks that run: all are 0 and grid
    unsigned order;        // 0: first to last; 1: last to first; else the seed of a random one
};

inline void launch(const Launch& how, std::function<void()> kernel) {
    static std::vector<Fiber> pool(0);
    const std::size_t fibers = std::size_t(how.threads) * how.cluster;
    if (pool.size() < fibers) pool.resize(fibers);
    machine.kernel = std::move(kernel);
    blockDim = {how.threads, 1, 1};
    gridDim = {how.grid, 1, 1};
    std::mt19937 random(how.order);
    for (unsigned block = how.first; block < how.last; block += how.cluster) {
        machine.first_block = block;
        machine.shared.assign(how.cluster, {});
        for (auto& memory : machine.shared)
            memory = std::vector<float>(how.shared_bytes / sizeof(float), std::numeric_limits<float>::quiet_NaN());
        machine.fibers.clear();
        for (std::size_t i = 0; i < fibers; ++i) {
            Fiber& fiber = pool[i];
            fiber.thread = unsigned(i % how.threads);
            fiber.block = unsigned(i / how.threads);
            fiber.state = State::kReady;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = fiber.stack.size();
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, enter_fiber, 0);
            machine.fibers.push_back(&fiber);
        }
        std::vector<int> blocks(how.cluster);
        std::iota(blocks.begin(), blocks.end(), 0);
        if (how.order == 1) {
            std::reverse(machine.fibers.begin(), machine.fibers.end());
            std::reverse(blocks.begin(), blocks.end());
        } else if (how.order > 1) {
            std::shuffle(machine.fibers.begin(), machine.fibers.end(), random);
            std::shuffle(blocks.begin(), blocks.end(), random);
        }
        bool all_done = false;
        while (!all_done) {
            bool moved = false;
            for (int block : blocks)
                while (run_until_barrier(block)) {
                    moved = true;
                    release(block, State::kAtBlockBarrier);
                }
            release(-1, State::kAtClusterBarrier);
            all_done = true;
            for (const Fiber* fiber : machine.fibers) all_done = all_done && fiber->state == State::kDone;
            if (!all_done && !moved) fail("a barrier was not reached by all threads");
        }
    }
}

}  // namespace host

inline void __syncthreads() { host::leave(host::State::kAtBlockBarrier); }
inline void __cluster_barrier_arrive() {}
inline void __cluster_barrier_wait() { host::leave(host::State::kAtClusterBarrier); }
inline void* __cluster_map_shared_rank(void* mine, unsigned rank) {
    const auto offset = static_cast<float*>(mine) - host::shared_memory();
    if (rank >= host::machine.shared.size()) host::fail("no such block in the cluster");
    return host::machine.shared[rank].data() + offset;
}
