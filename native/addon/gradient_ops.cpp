// The arguments of the gradients' operations, in the order of their params structs.
#include "addon/arguments.h"

namespace loza::addon {

void read(Arguments& a, AdamwParams& p) {
  p.weight = a.tensor(), p.m = a.tensor(), p.v = a.tensor(), p.copy = a.optional_tensor();
  p.gradient = a.tensor(), p.clip = a.optional_tensor();
  p.rate = a.number(), p.beta1 = a.number(), p.beta2 = a.number(), p.eps = a.number();
  p.decay = a.number(), p.step = a.integer();
}
void read(Arguments& a, BlendParams& p) {
  p.out = a.tensor(), p.x = a.tensor(), p.y = a.optional_tensor();
  p.a = a.number(), p.b = a.number();
}
void read(Arguments& a, ClipFactorParams& p) {
  p.clip = a.tensor(), p.squares = a.tensor(), p.limit = a.number();
}
void read(Arguments& a, CombineGradientParams& p) {
  p.dy = a.tensor(), p.dweights = a.tensor(), p.didentity = a.optional_tensor();
  p.dout = a.tensor(), p.y = a.tensor(), p.place = a.tensor(), p.weights = a.tensor();
  p.identity = a.optional_tensor();
}
void read(Arguments& a, CrossEntropyParams& p) {
  p.loss = a.tensor(), p.dlogits = a.optional_tensor(), p.logits = a.tensor();
  p.targets = a.tensor(), p.weights = a.tensor();
}
void read(Arguments& a, DotParams& p) { p.out = a.tensor(), p.x = a.tensor(), p.y = a.tensor(); }
void read(Arguments& a, GatherRowsGradientParams& p) {
  p.dtable = a.tensor(), p.dout = a.tensor(), p.ids = a.tensor();
}
void read(Arguments& a, GroupedLinearInputGradientParams& p) {
  p.dx = a.tensor(), p.dy = a.tensor(), p.weight = a.tensor(), p.starts = a.tensor();
  p.accumulate = a.boolean();
}
void read(Arguments& a, GroupedLinearWeightGradientParams& p) {
  p.dw = a.tensor(), p.dy = a.tensor(), p.x = a.tensor(), p.starts = a.tensor();
  p.order = a.optional_tensor(), p.top_k = a.integer();
}
void read(Arguments& a, LinearInputGradientParams& p) {
  p.dx = a.tensor(), p.dy = a.tensor(), p.weight = a.tensor(), p.scale = a.optional_tensor();
  p.accumulate = a.boolean();
}
void read(Arguments& a, LinearWeightGradientParams& p) {
  p.dw = a.tensor(), p.dy = a.tensor(), p.x = a.tensor();
}
void read(Arguments& a, RmsNormGradientParams& p) {
  p.dx = a.tensor(), p.dweight = a.optional_tensor(), p.dy = a.tensor(), p.x = a.tensor();
  p.weight = a.tensor(), p.eps = a.number(), p.scale = a.number(), p.accumulate = a.boolean();
}
void read(Arguments& a, RouteGradientParams& p) {
  p.dlogits = a.tensor(), p.dweights = a.tensor(), p.logits = a.tensor(), p.ids = a.tensor();
  p.scoring = static_cast<Scoring>(a.integer());
  p.normalize = a.boolean(), p.scale = a.number();
}
void read(Arguments& a, SquaredDifferenceParams& p) {
  p.loss = a.tensor(), p.dx = a.optional_tensor(), p.x = a.tensor(), p.target = a.tensor();
  p.weights = a.tensor();
}
void read(Arguments& a, SumSlotsParams& p) {
  p.out = a.tensor(), p.y = a.tensor(), p.place = a.tensor();
}
void read(Arguments& a, SwigluGradientParams& p) {
  p.dgate = a.tensor(), p.dup = a.tensor(), p.dy = a.tensor(), p.gate = a.tensor();
  p.up = a.tensor();
}

}  // namespace loza::addon
