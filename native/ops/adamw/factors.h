// The numbers of one AdamW step, made once in float64.
#pragma once

#include <cmath>

#include "ops/adamw/adamw.h"

namespace loza {

//   weight = keep * weight - rate * m / (sqrt(v) * root + eps)
struct AdamwFactors {
  float beta1, beta2, eps;
  float rate;  // corrected for m's start at zero
  float root;  // the same for sqrt(v)
  float keep;  // 1 - rate * decay

  explicit AdamwFactors(const AdamwParams& p)
      : beta1(p.beta1),
        beta2(p.beta2),
        eps(p.eps),
        rate(static_cast<float>(p.rate / (1 - std::pow(double{p.beta1}, p.step)))),
        root(static_cast<float>(1 / std::sqrt(1 - std::pow(double{p.beta2}, p.step)))),
        keep(static_cast<float>(1 - double{p.rate} * p.decay)) {}
};

}  // namespace loza
