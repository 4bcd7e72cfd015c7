#pragma once

#include "core/tensor.h"

namespace loza {

// The norms of MLA's two latents. Writes one cache row a token (model-spec section 8):
//   cache[slot] = [ scale * weight * kv[0:latent] / rms | rope(kv[latent:]) ]
// (an FP8 latent cache, ops/latent_cache.h, has the latent as codes with the row's own scale)
// and, where queries are compressed, normalises them in place:
//   query = query_scale * query_weight * query / rms
// Slot -1 is padding: no cache row is written.
struct LatentStoreParams {
  Tensor cache;       // f32 | bf16 [slots, latent + rope], or an FP8 latent cache
  Tensor kv;          // act [rows, latent + rope], the output of kv_a_proj_with_mqa
  Tensor weight;      // f32 | bf16 [latent], kv_a_layernorm
  Tensor rope_table;  // f32 [rows, rope]
  Tensor slots;       // i32 [rows]
  float eps = 0;
  float scale = 1;        // LongCat's a_kv
  Tensor query;           // act [rows, query rank], the output of q_a_proj; may be absent
  Tensor query_weight;    // [query rank], q_a_layernorm, of weight's dtype; absent with query
  float query_scale = 1;  // LongCat's a_q

  void check(DType act) const;
};

}  // namespace loza
