// The CUDA runtime's objects, each freed by its owner. Every call is checked: CudaError says which
// one failed. The device has to be current on the thread.
#ifndef REST_DEPLOY_SRC_CUDA_MEMORY_H
#define REST_DEPLOY_SRC_CUDA_MEMORY_H

#include <cuda_runtime_api.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

namespace rest_deploy {

struct CudaError : std::runtime_error {
  CudaError(const char* call, cudaError_t code)
      : std::runtime_error(std::string(call) + ": " + cudaGetErrorString(code)) {}
};

inline void check_cuda(cudaError_t code, const char* call) {
  if (code != cudaSuccess) throw CudaError(call, code);
}

#define REST_DEPLOY_CUDA(call) ::rest_deploy::check_cuda((call), #call)

class CudaStream {
 public:
  // Not ordered with the default stream, on which every enqueue waits for the device.
  CudaStream() { REST_DEPLOY_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  ~CudaStream() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaEvent {
 public:
  // Its waiter sleeps instead of spinning: other threads may have work for the core.
  CudaEvent() {
    REST_DEPLOY_CUDA(
        cudaEventCreateWithFlags(&event_, cudaEventBlockingSync | cudaEventDisableTiming));
  }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  ~CudaEvent() { cudaEventDestroy(event_); }
  void record(const CudaStream& stream) { REST_DEPLOY_CUDA(cudaEventRecord(event_, stream.get())); }
  void wait() { REST_DEPLOY_CUDA(cudaEventSynchronize(event_)); }

 private:
  cudaEvent_t event_ = nullptr;
};

struct DeviceMemory {
  static void* allocate(std::size_t size) {
    void* pointer = nullptr;
    REST_DEPLOY_CUDA(cudaMalloc(&pointer, size));  // aligned to 256 bytes, as TensorRT wants it
    return pointer;
  }
  static void release(void* pointer) { cudaFree(pointer); }
};

// Page-locked memory of the host: copies from and to it are asynchronous.
struct PinnedMemory {
  static void* allocate(std::size_t size) {
    void* pointer = nullptr;
    REST_DEPLOY_CUDA(cudaMallocHost(&pointer, size));
    return pointer;
  }
  static void release(void* pointer) { cudaFreeHost(pointer); }
};

// Grows, never shrinks; what was in it is lost when it grows.
template <class Memory>
class CudaBuffer {
 public:
  CudaBuffer() = default;
  CudaBuffer(const CudaBuffer&) = delete;
  CudaBuffer& operator=(const CudaBuffer&) = delete;
  ~CudaBuffer() {
    if (pointer_ != nullptr) Memory::release(pointer_);
  }

  void* reserve(std::size_t size) {
    if (size > size_) {
      if (pointer_ != nullptr) Memory::release(std::exchange(pointer_, nullptr));
      size_ = 0;
      pointer_ = Memory::allocate(size);
      size_ = size;
    }
    return pointer_;
  }

 private:
  void* pointer_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace rest_deploy

#endif
