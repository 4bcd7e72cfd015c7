import { learningRate } from '../../lib/train/schedule';

test.each([
  [0, 0.1],
  [9, 0.5],
  [19, 1],
  [50, 1],
  [80, 1],
  [90, 0.5],
  [99, 0.1],
])('step %i of 100 learns at %f of the peak', (step, share) => {
  expect(learningRate(step, 100, 0.02)).toBeCloseTo(0.02 * share, 12);
});

test.each([1, 2, 3, 4, 7])('%i steps have a rate between the floor and the peak', (steps) => {
  for (let step = 0; step < steps; step++) {
    const rate = learningRate(step, steps, 1);
    expect(rate).toBeGreaterThanOrEqual(0.1);
    expect(rate).toBeLessThanOrEqual(1);
  }
});
