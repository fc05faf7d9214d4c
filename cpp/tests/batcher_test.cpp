// The batcher on a runner that is told how long to take; no check here measures time.
#include "serve/batcher.h"

#include <algorithm>
#include <atomic>

#include "check.h"

using namespace rest_deploy;
using namespace rest_deploy::serve;
using std::chrono::milliseconds;

namespace {

// Answers each image with its first value, in a vector and in a map, once `open()` lets it.
class Fake final : public Runner {
 public:
  explicit Fake(bool open = true) : open_(open) {
    metadata_.outputs = {{"logits", OutputKind::logits, 1, 0, false},
                         {"c2", OutputKind::features, 2, 4, false}};
  }

  const std::string& name() const noexcept override { return name_; }
  const Metadata& metadata() const noexcept override { return metadata_; }

  Result<Tensors> infer_all(const ImageBatch& images,
                            const std::vector<std::string>& names) const override {
    std::unique_lock<std::mutex> lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
    batches_.push_back(images.batch);
    names_ = names;
    if (fails_) return Status(Code::device, "it failed");
    Tensors tensors;
    for (const std::string& name : names) {
      Tensor tensor{name, shape_of(*metadata_.find(name), images.batch, images.height, images.width),
                    {}};
      std::size_t each = 1;
      for (std::size_t i = 1; i < tensor.shape.size(); ++i) each *= tensor.shape[i];
      for (std::size_t i = 0; i < images.batch; ++i) {
        tensor.values.insert(tensor.values.end(), each,
                             images.data[i * 3 * images.height * images.width]);
      }
      tensors.push_back(std::move(tensor));
    }
    return tensors;
  }

  void open() {
    const std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

  void fail() { fails_ = true; }

  // Until a call is under way.
  void await_call() const {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return waiting_ > 0; });
  }

  // Outputs of the last call.
  std::vector<std::string> names() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return names_;
  }

  std::vector<std::size_t> batches() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return batches_;
  }

 private:
  std::string name_ = "fake";
  Metadata metadata_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  mutable std::vector<std::size_t> batches_;
  mutable std::vector<std::string> names_;
  mutable int waiting_ = 0;
  bool open_;
  std::atomic<bool> fails_{false};
};

Images images(float value, std::size_t batch = 1, std::size_t side = 32) {
  return {std::vector<float>(batch * 3 * side * side, value), batch, side, side, {}};
}

Clock::time_point later(int ms = 60'000) { return Clock::now() + milliseconds(ms); }

BatcherOptions options(std::size_t max_batch, std::size_t queue, int delay_ms = 20) {
  BatcherOptions made;
  made.max_batch = max_batch;
  made.queue = queue;
  made.max_delay = milliseconds(delay_ms);
  return made;
}

// Waits for what another thread is about to do.
template <class Condition>
bool eventually(Condition condition) {
  for (int turn = 0; turn < 20'000 && !condition(); ++turn) std::this_thread::sleep_for(milliseconds(1));
  return condition();
}

void every_request_gets_its_own_answer() {
  const Fake runner;
  Metrics metrics;
  Batcher batcher(runner, options(4, 1000), metrics);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int turn = 0; turn < 20; ++turn) {
        const float value = static_cast<float>(t * 100 + turn);
        const std::size_t batch = static_cast<std::size_t>(1 + (t + turn) % 3);
        const std::size_t side = t % 2 == 0 ? 32 : 40;
        const Result<Tensors> answer = batcher.run(images(value, batch, side), {"logits"}, later());
        if (!answer || answer.value()[0].values != std::vector<float>(batch, value)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  std::size_t total = 0;
  for (const std::size_t batch : runner.batches()) {
    CHECK(batch >= 1 && batch <= 4);
    total += batch;
  }
  CHECK(total == 20 * 8 * 2 && runner.batches().size() < 160);
  CHECK(batcher.queued() == 0);
}

// Held requests share a batch as soon as the runner is free, one image size a batch.
void sizes_do_not_mix() {
  Fake runner(false);
  Metrics metrics;
  Batcher batcher(runner, options(4, 100), metrics);
  std::vector<std::thread> threads;
  threads.emplace_back([&] { CHECK(batcher.run(images(1), {"logits"}, later()).ok()); });
  runner.await_call();
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      CHECK(batcher.run(images(2, 1, i % 2 == 0 ? 32 : 64), {"logits"}, later()).ok());
    });
  }
  CHECK(eventually([&] { return batcher.queued() == 4; }));
  runner.open();
  for (std::thread& thread : threads) thread.join();
  CHECK(runner.batches() == std::vector<std::size_t>({1, 2, 2}));
}

// Requests for other outputs share a batch; each gets those it asked for, in its order, of its images.
void outputs_do_not_mix() {
  Fake runner(false);
  Metrics metrics;
  Batcher batcher(runner, options(8, 100), metrics);
  std::vector<std::thread> threads;
  threads.emplace_back([&] { CHECK(batcher.run(images(1), {"c2"}, later()).ok()); });
  runner.await_call();
  std::atomic<int> right{0};
  const auto ask = [&](float value, std::size_t batch, std::vector<std::string> names) {
    threads.emplace_back([&, value, batch, names] {
      const Result<Tensors> answer = batcher.run(images(value, batch, 36), names, later());
      if (!CHECK_THAT(answer.ok(), answer.status().text())) return;
      const Tensors& found = answer.value();
      const std::vector<std::string> expected =
          names.empty() ? std::vector<std::string>{"logits", "c2"} : names;
      if (!CHECK(found.size() == expected.size())) return;
      for (std::size_t i = 0; i < found.size(); ++i) {
        const bool map = expected[i] == "c2";
        CHECK(found[i].name == expected[i]);
        CHECK(found[i].shape == (map ? std::vector<std::size_t>{batch, 2, 9, 9}
                                     : std::vector<std::size_t>{batch, 1}));
        CHECK(found[i].values == std::vector<float>(batch * (map ? 162 : 1), value));
        ++right;
      }
    });
  };
  ask(2, 1, {"logits"});
  ask(3, 2, {"c2", "logits"});
  ask(4, 1, {});
  CHECK(eventually([&] { return batcher.queued() == 4; }));
  runner.open();
  for (std::thread& thread : threads) thread.join();
  CHECK(right == 5 && runner.batches() == std::vector<std::size_t>({1, 4}));
  CHECK(runner.names() == std::vector<std::string>({"logits", "c2"}));
  CHECK(batcher.run(images(5), {"logits"}, later()).ok());
  CHECK(runner.names() == std::vector<std::string>({"logits"}));  // no map is copied for nobody
}

void a_full_queue_refuses() {
  Fake runner(false);
  Metrics metrics;
  Batcher batcher(runner, options(2, 3), metrics);
  std::vector<std::thread> threads;
  threads.emplace_back([&] { CHECK(batcher.run(images(1), {"logits"}, later()).ok()); });
  runner.await_call();
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] { CHECK(batcher.run(images(2), {"logits"}, later()).ok()); });
  }
  CHECK(eventually([&] { return batcher.queued() == 3; }));
  CHECK(batcher.full());
  const Result<Tensors> refused = batcher.run(images(3), {"logits"}, later());
  CHECK(refused.status().code() == Code::overloaded && !refused.status().hint().empty());
  runner.open();
  for (std::thread& thread : threads) thread.join();
  CHECK(!batcher.full() && batcher.run(images(3), {"logits"}, later()).ok());
}

void what_is_late_is_told_and_makes_room() {
  Fake runner(false);
  Metrics metrics;
  Batcher batcher(runner, options(2, 1, 0), metrics);
  std::thread first([&] { CHECK(batcher.run(images(1), {"logits"}, later()).ok()); });
  runner.await_call();
  CHECK(batcher.run(images(2), {"logits"}, later(1)).status().code() == Code::deadline);
  CHECK(batcher.queued() == 0);
  CHECK(batcher.run(images(2), {"logits"}, Clock::now() - milliseconds(1)).status().code() == Code::deadline);
  runner.open();
  first.join();
  CHECK(runner.batches() == std::vector<std::size_t>({1}));  // the late ones were never computed
}

void draining_answers_what_was_accepted() {
  Fake runner(false);
  Metrics metrics;
  Batcher batcher(runner, options(8, 100, 10'000), metrics);
  std::atomic<int> answered{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] { answered += batcher.run(images(1), {"logits"}, later()).ok(); });
  }
  CHECK(eventually([&] { return batcher.queued() == 3; }));
  batcher.drain();  // does not wait for the delay of ten seconds
  CHECK(batcher.run(images(2), {"logits"}, later()).status().code() == Code::unavailable);
  runner.open();
  for (std::thread& thread : threads) thread.join();
  CHECK(answered == 3);
}

void failures_and_bad_requests() {
  Fake runner;
  Metrics metrics;
  Batcher batcher(runner, options(2, 100), metrics);
  CHECK(batcher.run(images(1, 3), {"logits"}, later()).status().code() == Code::shape);
  CHECK(batcher.run(images(1, 1, 31), {"logits"}, later()).status().code() == Code::shape);
  CHECK(batcher.run({}, {"logits"}, later()).status().code() == Code::shape);
  CHECK(batcher.run(images(1), {"c9"}, later()).status().code() == Code::argument);
  const std::vector<std::uint8_t> bytes(3 * 32 * 32);
  CHECK(batcher.run({{}, 1, 32, 32, bytes}, {"logits"}, later()).status().code() == Code::shape);
  runner.fail();
  CHECK(batcher.run(images(1), {"logits"}, later()).status().code() == Code::device);
}

void several_instances() {
  const Fake runner;
  Metrics metrics;
  BatcherOptions wanted = options(2, 1000, 1);
  wanted.instances = 3;
  std::atomic<int> right{0};
  {
    Batcher batcher(runner, wanted, metrics);
    std::vector<std::thread> threads;
    for (int t = 0; t < 6; ++t) {
      threads.emplace_back([&, t] {
        for (int turn = 0; turn < 20; ++turn) {
          const float value = static_cast<float>(t + 10 * turn);
          const Result<Tensors> answer = batcher.run(images(value), {"logits"}, later());
          right += answer.ok() && answer.value()[0].values[0] == value;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  CHECK(right == 120);
}

void counts() {
  Metrics metrics;
  metrics.request("infer", 200, 0.002);
  metrics.request("infer", 200, 0.3);
  metrics.request("classify", 429, 20);
  metrics.batch(3, 0.01);
  const std::string text = metrics.text(7);
  for (const char* line :
       {"rest_deploy_requests_total{route=\"infer\",code=\"200\"} 2\n",
        "rest_deploy_requests_total{route=\"classify\",code=\"429\"} 1\n",
        "rest_deploy_images_total 3\n", "rest_deploy_queue_images 7\n",
        "rest_deploy_request_seconds_bucket{route=\"infer\",le=\"0.0025\"} 1\n",
        "rest_deploy_request_seconds_bucket{route=\"infer\",le=\"+Inf\"} 2\n",
        "rest_deploy_request_seconds_sum{route=\"infer\"} 0.302\n",
        "rest_deploy_request_seconds_bucket{route=\"classify\",le=\"10\"} 0\n",
        "rest_deploy_batch_images_bucket{le=\"2\"} 0\n",
        "rest_deploy_batch_images_bucket{le=\"4\"} 1\n", "rest_deploy_batch_images_count 1\n"}) {
    CHECK_THAT(text.find(line) != std::string::npos, line);
  }
}

}  // namespace

int main() {
  every_request_gets_its_own_answer();
  sizes_do_not_mix();
  outputs_do_not_mix();
  a_full_queue_refuses();
  what_is_late_is_told_and_makes_room();
  draining_answers_what_was_accepted();
  failures_and_bad_requests();
  several_instances();
  counts();
  return check::result();
}
