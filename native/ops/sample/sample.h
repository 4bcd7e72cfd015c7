#pragma once

#include "core/tensor.h"

namespace loza {

// Chooses one token a row. In this order, on the row's logits:
//   repetition penalty (x > 0 ? x / r : x * r, for tokens marked in `seen`), temperature, top-k,
//   top-p (smallest set of the most likely tokens whose probability reaches p), min-p (tokens with
//   at least min_p times the largest probability), then one draw. Temperature 0: the largest logit
//   after the penalty, ties to the lower id.
// Each step sees what the step before kept: top-p counts probability among the top-k. Each keeps a
// prefix of the tokens sorted by logit, ties to the lower id.
// The draw is a pure function of (seed, counter), whatever the batch: the first kept token, in
// ascending id, at which the running probability exceeds uniform(seed, counter) of uniform.h.
// The chosen token is marked in `seen`. Log-probabilities are those of the model before any of the
// above: log softmax(logits). Logits with NaN or +inf, or all -inf, fail with ERR_LOZA_INTERNAL,
// impossible settings with ERR_LOZA_INVALID_ARG.
struct SampleParams {
  Tensor tokens;        // i32 [rows]
  Tensor logprobs;      // f32 [rows]
  Tensor top_tokens;    // i32 [rows, alternatives], most likely first; may be absent
  Tensor top_logprobs;  // f32 [rows, alternatives]; absent with top_tokens
  Tensor logits;        // f32 [rows, vocab]
  Tensor settings;      // f32 [rows, 4]: temperature, top_p, min_p, repetition penalty
  Tensor integers;      // i32 [rows, 4]: top_k (0 = off), seed low, seed high, counter
  Tensor seen;          // i32 [rows, ceil(vocab / 32)] bit mask; may be absent (no penalty)

  void check(DType act) const;
};

}  // namespace loza
