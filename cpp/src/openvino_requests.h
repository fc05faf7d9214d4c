// Requests of a compiled model, shared by threads.
#ifndef REST_DEPLOY_SRC_OPENVINO_REQUESTS_H
#define REST_DEPLOY_SRC_OPENVINO_REQUESTS_H

#include <condition_variable>
#include <exception>
#include <mutex>
#include <openvino/openvino.hpp>
#include <utility>
#include <vector>

namespace rest_deploy {

using Requests = std::vector<ov::InferRequest>;

// A compiled model and the requests that run it: one a stream, used by one call at a time.
class Compiled {
 public:
  Compiled(ov::CompiledModel model, int most, std::size_t streams = 1)
      : model_(std::move(model)), streams_(streams), left_(most) {}

  // All of a call together: calls that held some of theirs and waited for the rest would wait for
  // each other.
  Requests take() {
    std::unique_lock<std::mutex> lock(mutex_);
    free_.wait(lock, [this] { return left_ > 0; });
    --left_;
    if (idle_.empty()) {
      lock.unlock();
      try {
        Requests made;
        while (made.size() < streams_) made.push_back(model_.create_infer_request());
        return made;
      } catch (...) {
        lock.lock();
        ++left_;
        free_.notify_one();
        throw;
      }
    }
    Requests requests = std::move(idle_.back());
    idle_.pop_back();
    return requests;
  }

  void give(Requests requests) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      idle_.push_back(std::move(requests));
      ++left_;
    }
    free_.notify_one();
  }

  const ov::CompiledModel& model() const { return model_; }

 private:
  ov::CompiledModel model_;
  const std::size_t streams_;
  std::mutex mutex_;
  std::condition_variable free_;
  std::vector<Requests> idle_;
  int left_;
};

// The requests of a call, for the length of a scope.
class Lease {
 public:
  explicit Lease(Compiled& from) : from_(from), requests_(from.take()) {}
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() { from_.give(std::move(requests_)); }
  Requests& requests() { return requests_; }

 private:
  Compiled& from_;
  Requests requests_;
};

// No part is left running when another fails.
inline void run_all(Requests& requests) {
  if (requests.size() == 1) return requests[0].infer();
  std::exception_ptr failure;
  std::size_t started = 0;
  try {
    for (; started < requests.size(); ++started) requests[started].start_async();
  } catch (...) {
    failure = std::current_exception();
  }
  for (std::size_t i = 0; i < started; ++i) {
    try {
      requests[i].wait();
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace rest_deploy

#endif
