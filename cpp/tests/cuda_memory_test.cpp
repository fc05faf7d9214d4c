// cuda_memory.h on a GPU, without TensorRT: copies there and back, growth, who frees what and when,
// what an error says, waiting. Without a GPU it ends with CTest's code for a skipped test.
#include "cuda_memory.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "check.h"

namespace {

using rest_deploy::CudaBuffer;
using rest_deploy::CudaError;
using rest_deploy::CudaEvent;
using rest_deploy::CudaStream;
using rest_deploy::DeviceMemory;
using rest_deploy::PinnedMemory;

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE in CMakeLists.txt
constexpr std::size_t kMiB = 1 << 20;
constexpr unsigned char kPoison = 0xA5;

// What frees in its destructor must not be copied, and these do not move either: a pointer to one
// stays good.
template <class T>
constexpr bool kStays = !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T> &&
                        !std::is_move_constructible_v<T> && !std::is_move_assignable_v<T>;
static_assert(kStays<CudaStream> && kStays<CudaEvent>);
static_assert(kStays<CudaBuffer<DeviceMemory>> && kStays<CudaBuffer<PinnedMemory>>);

std::size_t free_bytes() {
  std::size_t free = 0, total = 0;
  REST_DEPLOY_CUDA(cudaDeviceSynchronize());
  REST_DEPLOY_CUDA(cudaMemGetInfo(&free, &total));
  return free;
}

void fill(void* memory, std::size_t size, unsigned seed) {
  auto* bytes = static_cast<unsigned char*>(memory);
  std::uint32_t state = seed * 2654435761U + 1;
  for (std::size_t i = 0; i < size; ++i) {
    state = state * 1664525U + 1013904223U;
    bytes[i] = static_cast<unsigned char>(state >> 24);
  }
}

// What lane after lane does: host to device, device to host, an event, a wait.
struct Trip {
  CudaStream stream;
  CudaEvent done;
  CudaBuffer<PinnedMemory> source, target;
  CudaBuffer<DeviceMemory> device;

  bool holds(std::size_t size, unsigned seed) {
    void* from = source.reserve(size);
    void* to = target.reserve(size);
    void* there = device.reserve(size);
    fill(from, size, seed);
    std::memset(to, kPoison, size);
    REST_DEPLOY_CUDA(cudaMemsetAsync(there, kPoison, size, stream.get()));
    REST_DEPLOY_CUDA(cudaMemcpyAsync(there, from, size, cudaMemcpyHostToDevice, stream.get()));
    REST_DEPLOY_CUDA(cudaMemcpyAsync(to, there, size, cudaMemcpyDeviceToHost, stream.get()));
    done.record(stream);
    done.wait();
    return std::memcmp(from, to, size) == 0;
  }
};

void test_there_and_back() {
  Trip trip;
  unsigned seed = 0;
  for (const std::size_t size : {std::size_t{1}, std::size_t{4097}, 3 * kMiB, 64 * kMiB}) {
    CHECK_THAT(trip.holds(size, ++seed), std::to_string(size) + " bytes");
  }
}

void test_growth() {
  CudaBuffer<DeviceMemory> first, second;
  CudaBuffer<PinnedMemory> host;
  CHECK(first.reserve(0) == nullptr);
  void* small = first.reserve(1000);
  CHECK(small != nullptr && reinterpret_cast<std::uintptr_t>(small) % 256 == 0);
  CHECK(first.reserve(1000) == small);
  CHECK(first.reserve(10) == small);
  CHECK(first.reserve(0) == small);

  // What another buffer holds stays when one grows.
  constexpr std::size_t size = kMiB;
  auto* bytes = static_cast<unsigned char*>(host.reserve(size));
  std::memset(bytes, kPoison, size);
  REST_DEPLOY_CUDA(cudaMemcpy(second.reserve(size), bytes, size, cudaMemcpyHostToDevice));
  void* grown = first.reserve(8 * kMiB);
  REST_DEPLOY_CUDA(cudaMemset(grown, 0, 8 * kMiB));
  CHECK(first.reserve(kMiB) == grown);
  std::memset(bytes, 0, size);
  REST_DEPLOY_CUDA(cudaMemcpy(bytes, second.reserve(0), size, cudaMemcpyDeviceToHost));
  std::size_t kept = 0;
  for (std::size_t i = 0; i < size; ++i) kept += bytes[i] == kPoison ? 1 : 0;
  CHECK(kept == size);
}

void test_everything_is_given_back() {
  constexpr std::size_t size = 16 * kMiB;
  constexpr int rounds = 100;
  { CHECK(Trip().holds(size, 0)); }  // what the driver keeps for itself after the first use
  const std::size_t before = free_bytes();
  {
    CudaBuffer<DeviceMemory> held;
    held.reserve(size);
    CHECK(free_bytes() + size <= before);  // the measure sees one buffer
    held.reserve(2 * size);
    CHECK(free_bytes() + 2 * size <= before);
    CHECK(free_bytes() + 3 * size > before);  // and that growing frees the old one
  }
  for (int round = 0; round < rounds; ++round) {
    Trip trip;
    trip.device.reserve(size);
    trip.source.reserve(kMiB);
  }
  for (int round = 0; round < rounds; ++round) {
    try {
      CudaBuffer<DeviceMemory> buffer;
      buffer.reserve(size);
      throw std::runtime_error("of a caller");
    } catch (const std::runtime_error&) {  // only what the scope gives back matters
    }
  }
  const std::size_t after = free_bytes();
  CHECK_THAT(after + size > before, std::to_string(before - after) + " bytes are lost");
}

template <class Work>
std::string refusal(Work work) {
  try {
    work();
  } catch (const CudaError& error) {
    return error.what();
  }
  return "not refused";
}

// The message names the call and what CUDA says, and what was there goes on.
void test_refusals() {
  Trip trip;
  CHECK(trip.holds(kMiB, 1));
  CudaBuffer<DeviceMemory> buffer;
  buffer.reserve(kMiB);
  const std::string much = refusal([&] { buffer.reserve(std::size_t{1} << 46); });
  CHECK_THAT(much == "cudaMalloc(&pointer, size): out of memory", much);
  CHECK(buffer.reserve(kMiB) != nullptr);  // empty, not broken
  const std::string pinned = refusal([] { CudaBuffer<PinnedMemory>().reserve(~std::size_t{0}); });
  CHECK_THAT(pinned.rfind("cudaMallocHost(&pointer, size): ", 0) == 0, pinned);
  const std::string device = refusal([] { REST_DEPLOY_CUDA(cudaSetDevice(1000)); });
  CHECK_THAT(device == "cudaSetDevice(1000): invalid device ordinal", device);
  CHECK(trip.holds(kMiB, 2));
}

// Work on a stream that is done when `go` is set, and gives up after 10 s.
struct Gate {
  std::atomic<bool> go{false}, passed{false};
  static void CUDART_CB hold(void* data) {
    auto& gate = *static_cast<Gate*>(data);
    for (int i = 0; i < 10'000 && !gate.go; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    gate.passed = true;
  }
};

void test_an_event_is_waited_for() {
  CudaStream stream;
  CudaEvent done;
  done.wait();  // nothing was recorded: nothing to wait for
  Gate gate;
  REST_DEPLOY_CUDA(cudaLaunchHostFunc(stream.get(), Gate::hold, &gate));
  done.record(stream);
  CHECK(cudaStreamQuery(stream.get()) == cudaErrorNotReady);
  std::thread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    gate.go = true;
  });
  const auto before = std::chrono::steady_clock::now();
  done.wait();
  const auto waited = std::chrono::steady_clock::now() - before;
  CHECK(gate.passed);
  CHECK(waited >= std::chrono::milliseconds(150));
  CHECK(cudaStreamQuery(stream.get()) == cudaSuccess);
  opener.join();
}

// One stream's work does not hold another's up: neither is the default stream.
void test_streams_are_apart() {
  Gate gate;
  CudaStream blocked;
  Trip trip;
  CHECK(trip.holds(kMiB, 3));
  REST_DEPLOY_CUDA(cudaLaunchHostFunc(blocked.get(), Gate::hold, &gate));
  CHECK(trip.holds(kMiB, 4));
  CHECK(!gate.passed);
  gate.go = true;
  REST_DEPLOY_CUDA(cudaStreamSynchronize(blocked.get()));
  CHECK(gate.passed);
}

void test_threads() {
  constexpr unsigned count = 8, rounds = 30;
  std::array<std::string, count> wrong;
  std::vector<std::thread> threads;
  for (unsigned index = 0; index < count; ++index) {
    threads.emplace_back([index, &wrong] {
      try {
        REST_DEPLOY_CUDA(cudaSetDevice(0));
        Trip trip;
        for (unsigned round = 0; round < rounds; ++round) {
          // Some grow while others copy.
          if (!trip.holds(1000 + 50'000 * ((index + round) % 7), index * rounds + round)) {
            wrong[index] = "another's bytes in round " + std::to_string(round);
          }
        }
      } catch (const std::exception& error) {
        wrong[index] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& found : wrong) CHECK_THAT(found.empty(), found);
}

}  // namespace

int main() {
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found == cudaErrorNoDevice || found == cudaErrorInsufficientDriver ||
      (found == cudaSuccess && count == 0)) {
    std::printf("skipped: no GPU: %s\n", cudaGetErrorString(found));
    return kSkipped;
  }
  try {
    REST_DEPLOY_CUDA(found);
    REST_DEPLOY_CUDA(cudaSetDevice(0));
    test_there_and_back();
    test_growth();
    test_everything_is_given_back();
    test_refusals();
    test_an_event_is_waited_for();
    test_streams_are_apart();
    test_threads();
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  return check::result();
}
