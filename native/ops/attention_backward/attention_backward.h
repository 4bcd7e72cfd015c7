#pragma once

#include "core/tensor.h"
#include "ops/attention/key_range.h"

namespace loza {

// Reverse mode of AttentionPrefill (ops/attention/attention.h): what the gradient of `out` makes of the
// gradients of q, kv and k_rope. A segment pairs a run of query rows with a run of key rows, as there:
//   [query_row, query_count, query_position, key_row, key_count, key_position]
// but segments share neither query rows nor key rows, and all of a row's keys are in one segment: a
// sequence each. With p(t, j) = exp(score(t, j) - lse(t)) where range.allows(t, j), and 0 elsewhere:
//   ds(t, j)    = softmax_scale * p(t, j) * (d_out(t) . v(j) - d_out(t) . out(t))
//   d_q(t)      = sum_j ds(t, j) k(j)        k(j) = [kv(j)[: nope] | k_rope(j)], a head each
//   d_kv(j)     = [ (sum_t ds(t, j) q(t))[: nope] | sum_t p(t, j) d_out(t) ]
//   d_k_rope(j) = sum of (sum_t ds(t, j) q(t))[nope :] over the heads
// All of d_q, d_kv and d_k_rope is overwritten, or added to with `accumulate`. Rows that see no key (lse
// -inf), keys that no query sees and rows of no segment get 0 (nothing is added), and what lies in the
// inputs there is not looked at. The same inputs give the same bits.
struct AttentionBackwardParams {
  Tensor d_q;       // act [rows, heads, nope + rope]
  Tensor d_kv;      // act [keys, heads, nope + value]
  Tensor d_k_rope;  // act | f32 [keys, rope], rows may be strided
  Tensor q;         // act [rows, heads, nope + rope], rotated
  Tensor kv;        // act [keys, heads, nope + value]
  Tensor k_rope;    // act [keys, rope], rows may be strided
  Tensor out;       // act | f32 [rows, heads, value], the forward pass's result
  Tensor lse;       // f32 [rows, heads], and its log-sum-exp (natural logarithm)
  Tensor d_out;     // act [rows, heads, value]
  Tensor segments;  // i32 [segments, 6]
  float softmax_scale = 1;
  KeyRange range;
  bool accumulate = false;

  void check(DType act) const;
};

}  // namespace loza
