import type { Differentiable, Numbers } from './gradients';

/** Step of the differences: their error is its square, rounding adds 1e-16 over it. */
const step = 1e-5;

/**
 * How far `gradients` is from central differences of `forward`, ||difference|| / ||gradient||, for each
 * input. Every value of every input is moved.
 */
export function differenceErrors<Name extends string, Shape>(
  reference: Differentiable<Name, Shape>,
  inputs: Record<Name, Float64Array>,
  dout: Numbers,
  shape: Shape,
): Record<Name, number> {
  const value = () => dotProduct(dout, reference.forward(inputs, shape));
  const errors = Object.entries<Float64Array>(reference.gradients(inputs, dout, shape)).map(
    ([name, gradient]) => {
      const input = inputs[name as Name];
      let [error, squares] = [0, 0];
      gradient.forEach((slope, i) => {
        const before = input[i]!;
        input[i] = before + step;
        const above = value();
        input[i] = before - step;
        const below = value();
        input[i] = before;
        error += (slope - (above - below) / (2 * step)) ** 2;
        squares += slope ** 2;
      });
      return [name, Math.sqrt(error / squares)];
    },
  );
  return Object.fromEntries(errors) as Record<Name, number>;
}

export function dotProduct(x: Numbers, y: Numbers): number {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i]! * y[i]!;
  return sum;
}
