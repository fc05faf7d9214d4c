#include "batcher.h"

#include <algorithm>
#include <utility>

namespace rest_deploy::serve {
namespace {

double seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

bool alike(const Images& a, const Images& b) {
  return a.height == b.height && a.width == b.width;
}

// Those of `names`, of so many images from the first on.
Tensors rows(const Tensors& tensors, const std::vector<std::string>& names, std::size_t first,
             std::size_t count) {
  Tensors part;
  for (const std::string& name : names) {
    const auto found = std::find_if(tensors.begin(), tensors.end(),
                                    [&](const Tensor& tensor) { return tensor.name == name; });
    std::vector<std::size_t> shape = found->shape;
    shape[0] = count;
    part.push_back({name, std::move(shape), {found->row(first), found->row(first + count)}});
  }
  return part;
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

Result<Tensors> Batcher::run(Images images, std::vector<std::string> names,
                             Clock::time_point deadline) {
  const Metadata& metadata = runner_.metadata();
  if (Status status = check_images(images.view(), metadata); !status.ok()) return status;
  for (const std::string& name : names) {  // one that is unknown would fail its whole batch
    if (metadata.find(name) == nullptr) {
      return Status(Code::argument, "no output " + name + "; expected " + metadata.gives());
    }
  }
  if (names.empty()) {
    for (const Output& output : metadata.outputs) names.push_back(output.name);
  }
  if (images.batch > options_.max_batch) {
    return Status(Code::shape, "got " + std::to_string(images.batch) +
                                   " images; expected at most " +
                                   std::to_string(options_.max_batch) + " in a request");
  }
  auto pending = std::make_shared<Pending>();
  pending->images = std::move(images);
  pending->names = std::move(names);
  pending->entered = Clock::now();
  pending->deadline = deadline;
  std::future<Result<Tensors>> answer = pending->answer.get_future();
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

std::vector<std::string> Batcher::names_of(const Group& group) const {
  std::vector<std::string> names;
  for (const Output& output : runner_.metadata().outputs) {
    const auto wants = [&](const std::shared_ptr<Pending>& pending) {
      return std::find(pending->names.begin(), pending->names.end(), output.name) !=
             pending->names.end();
    };
    if (std::any_of(group.begin(), group.end(), wants)) names.push_back(output.name);
  }
  return names;
}

void Batcher::infer(const Group& group, std::size_t& answered) {
  const Images& first = group.front()->images;
  Images joined{{}, 0, first.height, first.width, {}};
  for (const auto& pending : group) joined.batch += pending->images.batch;
  ImageBatch batch = first.view();
  if (group.size() > 1) {
    joined.data.reserve(first.data.size() / first.batch * joined.batch);
    joined.pixels.reserve(first.pixels.size() / first.batch * joined.batch);
    for (const auto& pending : group) {
      const Images& each = pending->images;
      joined.data.insert(joined.data.end(), each.data.begin(), each.data.end());
      joined.pixels.insert(joined.pixels.end(), each.pixels.begin(), each.pixels.end());
    }
    batch = joined.view();
  }
  const Clock::time_point start = Clock::now();
  for (const auto& pending : group) metrics_.waited(seconds(start - pending->entered));
  const Result<Tensors> answer = runner_.infer_all(batch, names_of(group));
  metrics_.batch(joined.batch, seconds(Clock::now() - start));
  std::size_t row = 0;
  for (const auto& pending : group) {
    const std::size_t count = pending->images.batch;
    Result<Tensors> part = answer ? Result<Tensors>(rows(answer.value(), pending->names, row, count))
                                  : answer.status();
    row += count;
    ++answered;
    pending->answer.set_value(std::move(part));
  }
}

}  // namespace rest_deploy::serve
