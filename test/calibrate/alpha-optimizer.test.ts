import { AlphaOptimizer, type AlphaState } from '../../lib/calibrate/alpha-optimizer';
import { drawAlphas } from '../../lib/calibrate/picture';

const gradient = (step: number) => [Math.sin(step), -0.3, 0.5, 1e-9 * step];

test('Adam takes steps of the learning rate down a steady slope, and stops at the ends', () => {
  const optimizer = AlphaOptimizer.start(3);
  for (let step = 0; step < 10; step++) optimizer.step([0.7, -2, 1e-3], 0.02);
  const [down, up, alsoDown] = optimizer.alphas;
  expect(down).toBeCloseTo(0.8, 3);
  expect(up).toBe(1);
  expect(alsoDown).toBeCloseTo(0.8, 3);
  for (let step = 0; step < 100; step++) optimizer.step([0.7, -2, 1e-3], 0.02);
  expect([...optimizer.alphas]).toEqual([0, 1, 0]);
});

test('a state that went through JSON goes on to the same bits', () => {
  const straight = AlphaOptimizer.start(4);
  let resumed = AlphaOptimizer.start(4);
  for (let step = 0; step < 30; step++) {
    straight.step(gradient(step), 0.02);
    resumed.step(gradient(step), 0.02);
    resumed = AlphaOptimizer.resume(JSON.parse(JSON.stringify(resumed.save())) as AlphaState);
  }
  expect(resumed.save()).toEqual(straight.save());
  expect([...resumed.alphas]).toEqual([...straight.alphas]);
});

test('the picture has a bar for every alpha, and nothing that a browser would obey', () => {
  const alphas = Array.from({ length: 56 }, (_, i) => i / 55);
  const svg = drawAlphas({
    ...{ title: 'A <model> & more', subtitle: '28 of 56', alphas },
    ...{ layerType: '10'.repeat(28), perLayer: 2 },
  });
  expect(svg.match(/attention \d+:/g)).toHaveLength(56);
  expect(svg).toContain('A &lt;model&gt; &amp; more');
  expect(svg).not.toContain('<model>');
});
