// Requests of many threads -> batches of one engine.
#ifndef REST_DEPLOY_APPS_SERVE_BATCHER_H
#define REST_DEPLOY_APPS_SERVE_BATCHER_H

#include <chrono>
#include <condition_variable>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "metrics.h"
#include "rest_deploy/runner.h"

namespace rest_deploy::serve {

using Clock = std::chrono::steady_clock;

struct BatcherOptions {
  std::size_t max_batch = 8;           // images of one call of the engine
  std::chrono::milliseconds max_delay{2};  // that the first of a batch waits for others
  std::size_t queue = 128;             // images that may wait; more are refused
  int instances = 1;                   // calls of the engine at a time
};

class Batcher {
 public:
  // `runner` and `metrics` outlive it.
  Batcher(const Runner& runner, BatcherOptions options, Metrics& metrics);
  // Computes what was accepted, then ends.
  ~Batcher();
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;

  // Blocks until the answer is there. Only images of one size share a batch. Code::shape for more
  // images than a batch has, Code::overloaded when the queue is full, Code::deadline when the answer
  // is not there in time, Code::unavailable after `drain`, and what the runner says.
  // names: of the outputs wanted, in this order, each once; none: all.
  Result<Tensors> run(Images images, std::vector<std::string> names, Clock::time_point deadline);

  // From now on nothing new is accepted; what was is computed, without waiting for more.
  void drain();

  bool full() const;
  std::size_t queued() const;
  const BatcherOptions& options() const { return options_; }

 private:
  struct Pending {
    Images images;
    std::vector<std::string> names;
    Clock::time_point entered;
    Clock::time_point deadline;
    std::promise<Result<Tensors>> answer;
  };
  using Group = std::vector<std::shared_ptr<Pending>>;

  void work();
  std::size_t waiting_like(const Images& images) const;
  Group take();
  // Of the outputs that any of the group wants, in the model's order.
  std::vector<std::string> names_of(const Group& group) const;
  void compute(const Group& group);
  // answered: how many of the group have their answer.
  void infer(const Group& group, std::size_t& answered);

  const Runner& runner_;
  const BatcherOptions options_;
  Metrics& metrics_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Pending>> queue_;
  std::size_t queued_ = 0;
  bool draining_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace rest_deploy::serve

#endif
