#include "batcher.h"

#include <algorithm>

namespace rest_deploy::serve {
namespace {

double seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

bool alike(const Images& a, const Images& b) {
  return a.height == b.height && a.width == b.width;
}

Logits rows(const Logits& logits, std::size_t first, std::size_t count) {
  return {count, logits.classes, {logits.row(first), logits.row(first) + count * logits.classes}};
}

Status too_late() {
  return {Code::deadline, "the answer was not there before the deadline",
          "send fewer requests at a time, or allow more time"};
}

}  // namespace

Batcher::Batcher(const Runner& runner, BatcherOptions options, Metrics& metrics)
    : runner_(runner), options_(options), metrics_(metrics) {
  for (int i = 0; i < options_.instances; ++i) threads_.emplace_back([this] { work(); });
}

Batcher::~Batcher() {
  drain();
  for (std::thread& thread : threads_) thread.join();
}

Result<Logits> Batcher::run(Images images, Clock::time_point deadline) {
  if (Status status = check_images({images.data.data(), images.batch, images.height, images.width});
      !status.ok()) {
    return status;
  }
  if (images.batch > options_.max_batch) {
    return Status(Code::shape, "got " + std::to_string(images.batch) +
                                   " images; expected at most " +
                                   std::to_string(options_.max_batch) + " in a request");
  }
  auto pending = std::make_shared<Pending>();
  pending->images = std::move(images);
  pending->entered = Clock::now();
  pending->deadline = deadline;
  std::future<Result<Logits>> answer = pending->answer.get_future();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (draining_) return Status(Code::unavailable, "the server is shutting down");
    if (queued_ + pending->images.batch > options_.queue) {
      return Status(Code::overloaded, std::to_string(queued_) + " images wait already; the queue has "
                                      "room for " + std::to_string(options_.queue),
                    "try again later");
    }
    queued_ += pending->images.batch;
    queue_.push_back(pending);
  }
  changed_.notify_all();
  if (answer.wait_until(deadline) == std::future_status::ready) return answer.get();
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto place = std::find(queue_.begin(), queue_.end(), pending);
  if (place != queue_.end()) {  // makes room for others; in a batch already, it is computed
    queued_ -= pending->images.batch;
    queue_.erase(place);
  }
  return too_late();
}

void Batcher::drain() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    draining_ = true;
  }
  changed_.notify_all();
}

bool Batcher::full() const { return queued() >= options_.queue; }

std::size_t Batcher::queued() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return queued_;
}

void Batcher::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return draining_ || !queue_.empty(); });
    if (queue_.empty()) return;
    // Another worker may take the head meanwhile: then all is looked at anew.
    const std::shared_ptr<Pending> head = queue_.front();
    const Clock::time_point until = head->entered + options_.max_delay;
    const bool ready = changed_.wait_until(lock, until, [&] {
      return draining_ || queue_.empty() || queue_.front() != head ||
             waiting_like(head->images) >= options_.max_batch;
    });
    if (queue_.empty() || (ready && queue_.front() != head)) continue;
    const Group group = take();
    lock.unlock();
    if (!group.empty()) compute(group);
    lock.lock();
  }
}

std::size_t Batcher::waiting_like(const Images& images) const {
  std::size_t count = 0;
  for (const auto& pending : queue_) {
    if (alike(pending->images, images)) count += pending->images.batch;
  }
  return count;
}

// The head and those behind it that fit into its batch, in their order; what is too late is told.
Batcher::Group Batcher::take() {
  Group group;
  std::size_t images = 0;
  const Clock::time_point now = Clock::now();
  for (auto place = queue_.begin(); place != queue_.end();) {
    const std::shared_ptr<Pending> pending = *place;
    if (pending->deadline <= now) {
      pending->answer.set_value(too_late());
    } else if (!group.empty() && !alike(pending->images, group.front()->images)) {
      ++place;
      continue;
    } else if (images + pending->images.batch > options_.max_batch) {
      break;  // none overtakes one of its own size
    } else {
      images += pending->images.batch;
      group.push_back(pending);
    }
    queued_ -= pending->images.batch;
    place = queue_.erase(place);
  }
  return group;
}

void Batcher::compute(const Group& group) {
  std::size_t answered = 0;
  try {
    infer(group, answered);
  } catch (...) {  // no memory: the requests get an answer, the thread goes on
    for (; answered < group.size(); ++answered) {
      group[answered]->answer.set_value(Status(Code::internal, "there is no memory for the batch"));
    }
  }
}

void Batcher::infer(const Group& group, std::size_t& answered) {
  const Images& first = group.front()->images;
  std::vector<float> joined;
  std::size_t count = 0;
  for (const auto& pending : group) count += pending->images.batch;
  const float* data = first.data.data();
  if (group.size() > 1) {
    joined.reserve(count * 3 * first.height * first.width);
    for (const auto& pending : group) {
      joined.insert(joined.end(), pending->images.data.begin(), pending->images.data.end());
    }
    data = joined.data();
  }
  const Clock::time_point start = Clock::now();
  for (const auto& pending : group) metrics_.waited(seconds(start - pending->entered));
  const Result<Logits> answer = runner_.infer({data, count, first.height, first.width});
  metrics_.batch(count, seconds(Clock::now() - start));
  std::size_t row = 0;
  for (const auto& pending : group) {
    const std::size_t batch = pending->images.batch;
    Result<Logits> part = answer ? Result<Logits>(rows(answer.value(), row, batch)) : answer.status();
    row += batch;
    ++answered;
    pending->answer.set_value(std::move(part));
  }
}

}  // namespace rest_deploy::serve
