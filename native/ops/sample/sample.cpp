#include "ops/sample/sample.h"

#include <cmath>
#include <vector>

#include "cpu/convert.h"
#include "cpu/rows.h"
#include "cpu/simd.h"
#include "ops/cpu_ops.h"
#include "ops/sample/uniform.h"

namespace loza {

namespace {

constexpr int64_t kMaskBits = 32;

}  // namespace

void SampleParams::check(DType /*act*/) const {
  expect("sample logits", logits, DType::kF32, -1, -1);
  const int64_t rows = logits.dim(0), vocab = logits.dim(1);
  expect("sample tokens", tokens, DType::kI32, rows);
  expect("sample logprobs", logprobs, DType::kF32, rows);
  expect("sample settings", settings, DType::kF32, rows, 4);
  expect("sample integers", integers, DType::kI32, rows, 4);
  if (seen) expect("sample seen", seen, DType::kI32, rows, (vocab + kMaskBits - 1) / kMaskBits);
  loza::check(static_cast<bool>(top_tokens) == static_cast<bool>(top_logprobs),
              "sample: top_tokens and top_logprobs come together");
  if (!top_tokens) return;
  expect("sample top_tokens", top_tokens, DType::kI32, rows, -1);
  expect("sample top_logprobs", top_logprobs, DType::kF32, rows, top_tokens.dim(1));
  loza::check(top_tokens.dim(1) <= vocab, "sample: more alternatives than tokens");
}

namespace cpu {

namespace {

// Elements between two additions to a double: enough to vectorise, few enough to stay exact.
constexpr int64_t kSumRun = 256;
constexpr int64_t kSumLanes = 16;

struct Settings {
  float temperature, top_p, min_p, penalty;
  int32_t top_k;
  uint64_t seed;
  uint32_t counter;
};

struct Candidate {
  float logit;
  int32_t id;
};

// Working memory of one thread.
struct Scratch {
  std::vector<float> logits;   // after the repetition penalty
  std::vector<float> weights;  // exp((logit - largest) / temperature), so the largest weight is 1
  std::vector<Candidate> candidates;
  TopList alternatives;
};

Settings settings_of(const SampleParams& params, int64_t row) {
  const auto* reals = row_of<const float>(params.settings, row);
  const auto* integers = row_of<const int32_t>(params.integers, row);
  const auto word = [&](int i) { return static_cast<uint32_t>(integers[i]); };
  const Settings settings{.temperature = reals[0],
                          .top_p = reals[1],
                          .min_p = reals[2],
                          .penalty = reals[3],
                          .top_k = integers[0],
                          .seed = static_cast<uint64_t>(word(2)) << 32 | word(1),
                          .counter = word(3)};
  if (!(settings.temperature >= 0) || std::isnan(settings.top_p) || !(settings.min_p <= 1) ||
      !(settings.penalty > 0) || settings.top_k < 0)
    fail(code::kInvalidArg, "sample: temperature ", settings.temperature, ", top_p ",
         settings.top_p, ", min_p ", settings.min_p, ", repetition penalty ", settings.penalty,
         ", top_k ", settings.top_k, " cannot be used together");
  return settings;
}

LOZA_MULTIVERSION bool all_below_infinity(const float* logits, int64_t count) {
  int32_t bad = 0;
  for (int64_t i = 0; i < count; i++) bad |= !(logits[i] < INFINITY);
  return bad == 0;
}

LOZA_MULTIVERSION float largest_of(const float* logits, int64_t count) {
  float lanes[kSumLanes];
  for (float& lane : lanes) lane = -INFINITY;
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes)
    for (int64_t lane = 0; lane < kSumLanes; lane++)
      lanes[lane] = lanes[lane] < logits[i + lane] ? logits[i + lane] : lanes[lane];
  for (; i < count; i++) lanes[0] = std::max(lanes[0], logits[i]);
  return *std::max_element(lanes, lanes + kSumLanes);
}

LOZA_MULTIVERSION void exponentials(float* out, const float* logits, int64_t count, float largest,
                                    float temperature) {
  int64_t i = 0;
  for (; i + simd::kWidth <= count; i += simd::kWidth)
    simd::store(out + i, simd::exp((simd::load(logits + i) - largest) / temperature));
  const int64_t rest = count - i;
  const auto last = simd::exp((simd::load_first(logits + i, rest) - largest) / temperature);
  simd::store_first(out + i, last, rest);
}

LOZA_MULTIVERSION double sum_of(const float* values, int64_t count) {
  double total = 0;
  int64_t i = 0;
  for (; i + kSumRun <= count; i += kSumRun) {
    float lanes[kSumLanes] = {};
    for (int64_t j = 0; j < kSumRun; j += kSumLanes)
      for (int64_t lane = 0; lane < kSumLanes; lane++) lanes[lane] += values[i + j + lane];
    for (const float lane : lanes) total += lane;
  }
  for (; i < count; i++) total += values[i];
  return total;
}

// Largest logit after checking that the row can be sampled from at all.
float checked_largest(const float* logits, int64_t vocab) {
  const float largest = largest_of(logits, vocab);
  if (!all_below_infinity(logits, vocab) || largest == -INFINITY) {
    const bool nan = std::any_of(logits, logits + vocab, [](float x) { return std::isnan(x); });
    fail(code::kInternal, "the model produced ", nan ? "NaN" : "infinite", " logits");
  }
  return largest;
}

// The row after the repetition penalty; the row itself when there is none.
const float* penalised(const SampleParams& params, int64_t row, float penalty, Scratch& scratch) {
  const auto* logits = row_of<const float>(params.logits, row);
  if (!params.seen || penalty == 1) return logits;
  const int64_t vocab = params.logits.dim(1);
  scratch.logits.assign(logits, logits + vocab);
  const auto* seen = row_of<const uint32_t>(params.seen, row);
  for (int64_t token = 0; token < vocab; token++) {
    if ((seen[token / kMaskBits] >> (token % kMaskBits) & 1u) == 0) continue;
    float& logit = scratch.logits[token];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
  return scratch.logits.data();
}

bool more_likely(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

double weight_of(const std::vector<float>& weights, const Candidate* begin, const Candidate* end) {
  double total = 0;
  for (const auto* candidate = begin; candidate != end; candidate++)
    total += weights[candidate->id];
  return total;
}

// Puts the most likely candidates in front, until their weight reaches `target`; returns how many.
// Halves the range that holds the answer, so that nothing but the last few are ever sorted.
int64_t partition_by_weight(std::vector<Candidate>& candidates, const std::vector<float>& weights,
                            double target) {
  constexpr int64_t kSortable = 64;
  auto* data = candidates.data();
  auto low = int64_t{0}, high = static_cast<int64_t>(candidates.size());
  double reached = 0;  // the weight of [0, low)
  while (high - low > kSortable) {
    const int64_t middle = (low + high) / 2;
    std::nth_element(data + low, data + middle, data + high, more_likely);
    const double half = weight_of(weights, data + low, data + middle);
    if (reached + half >= target) {
      high = middle;
    } else {
      reached += half;
      low = middle;
    }
  }
  std::sort(data + low, data + high, more_likely);
  while (low < high && (low == 0 || reached < target)) reached += weights[data[low++].id];
  return low;
}

// Tokens lighter than this are never kept. Those below (1 - top_p) * total / vocab weigh less than
// (1 - top_p) * total together, so top-p is reached without them.
float lightest_kept(const Settings& settings, double total, int64_t vocab) {
  if (settings.top_k > 0) return 0;
  const double top_p_bound = (1.0 - settings.top_p) * total / static_cast<double>(vocab);
  // The largest weight is 1, whatever the bound: something is always kept.
  return static_cast<float>(std::min(1.0, std::max<double>(0.999 * top_p_bound, settings.min_p)));
}

// Leaves in scratch.candidates the tokens that survive top-k, top-p and min-p.
void keep_likely(const Settings& settings, const float* logits, int64_t vocab, double total,
                 Scratch& scratch) {
  const auto& weights = scratch.weights;
  auto& candidates = scratch.candidates;
  const float floor = lightest_kept(settings, total, vocab);
  candidates.clear();
  for (int64_t id = 0; id < vocab; id++)
    if (weights[id] > 0 && weights[id] >= floor)
      candidates.push_back({logits[id], static_cast<int32_t>(id)});

  const auto top_k = static_cast<size_t>(settings.top_k);
  if (top_k > 0 && top_k < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + top_k, candidates.end(), more_likely);
    candidates.resize(top_k);
  }
  if (settings.top_p < 1) {
    if (top_k > 0)
      total = weight_of(weights, candidates.data(), candidates.data() + candidates.size());
    candidates.resize(partition_by_weight(candidates, weights, settings.top_p * total));
  }
  std::erase_if(candidates,
                [&](const auto& candidate) { return weights[candidate.id] < settings.min_p; });
}

// The first token, in ascending id, at which the running weight exceeds `target`.
int32_t draw(Scratch& scratch, double uniform_number) {
  auto& candidates = scratch.candidates;
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  const auto* begin = candidates.data();
  const double total = weight_of(scratch.weights, begin, begin + candidates.size());
  const double target = uniform_number * total;
  double running = 0;
  for (const auto& candidate : candidates) {
    running += scratch.weights[candidate.id];
    if (running > target) return candidate.id;
  }
  return candidates.back().id;
}

// The same over the whole vocabulary, without making candidates of it.
int32_t draw_from_all(const std::vector<float>& weights, double total, double uniform_number) {
  const double target = uniform_number * total;
  double running = 0;
  int32_t last = 0;
  for (size_t id = 0; id < weights.size(); id++) {
    if (weights[id] == 0) continue;
    running += weights[id];
    last = static_cast<int32_t>(id);
    if (running > target) break;
  }
  return last;
}

int32_t choose(const SampleParams& params, int64_t row, Scratch& scratch) {
  const Settings settings = settings_of(params, row);
  const int64_t vocab = params.logits.dim(1);
  const float* logits = penalised(params, row, settings.penalty, scratch);
  const float largest = largest_of(logits, vocab);
  check(std::isfinite(largest), "sample: repetition penalty ", settings.penalty, " overflows");
  if (settings.temperature == 0)
    return static_cast<int32_t>(std::find(logits, logits + vocab, largest) - logits);
  auto& weights = scratch.weights;
  exponentials(weights.data(), logits, vocab, largest, settings.temperature);
  const double total = sum_of(weights.data(), vocab);
  const double number = uniform(settings.seed, settings.counter);
  const bool whole = settings.top_k == 0 && settings.top_p >= 1 && settings.min_p <= 0;
  if (whole) return draw_from_all(weights, total, number);
  keep_likely(settings, logits, vocab, total, scratch);
  return draw(scratch, number);
}

void sample_row(const SampleParams& params, int64_t row, Scratch& scratch) {
  const int64_t vocab = params.logits.dim(1);
  const auto* logits = row_of<const float>(params.logits, row);
  const float largest = checked_largest(logits, vocab);
  scratch.weights.resize(vocab);
  exponentials(scratch.weights.data(), logits, vocab, largest, 1);
  const double log_total = std::log(sum_of(scratch.weights.data(), vocab));
  const auto logprob = [&](int32_t token) {
    return static_cast<float>(static_cast<double>(logits[token]) - largest - log_total);
  };

  const int32_t token = choose(params, row, scratch);
  params.tokens.as<int32_t>()[row] = token;
  params.logprobs.as<float>()[row] = logprob(token);
  if (params.seen) row_of<uint32_t>(params.seen, row)[token / kMaskBits] |= 1u << token % kMaskBits;

  if (!params.top_tokens) return;
  TopList& best = scratch.alternatives;
  best.reset(params.top_tokens.dim(1));
  for (int64_t id = 0; id < vocab; id++) best.offer(logits[id], static_cast<int32_t>(id));
  for (int64_t i = 0; i < params.top_tokens.dim(1); i++) {
    const int32_t alternative = best.entries()[i].id;
    row_of<int32_t>(params.top_tokens, row)[i] = alternative;
    row_of<float>(params.top_logprobs, row)[i] = logprob(alternative);
  }
}

}  // namespace

void compute(const SampleParams& params) {
  for_each_row(params.logits.dim(0), params.logits.dim(1), [&](int64_t row) {
    thread_local Scratch scratch;
    sample_row(params, row, scratch);
  });
}

}  // namespace cpu

}  // namespace loza
