import { kvBytes } from '../../lib/cli/inspect';
import { tempFolder } from '../support/temp-folder';
import {
  describeCli,
  expectFailure,
  expectJsonFailure,
  golden,
  loza,
  lozaJson,
  readFiles,
  tiny,
} from './cli';

interface InspectObject {
  dir: string;
  model: { layerType: string; parameters: number; maxPosition: number; rope: { factor: number } };
  weights: { dtype: string; tensors: number; bytes: number }[];
  files: number;
  kv: {
    tokens: number;
    beyond: boolean;
    bytes: { dtype: string; full: number; loza: number }[];
  }[];
}

const goldens = [
  'deepseek-v2',
  'deepseek-v3-yarn',
  'deepseek-v3-zigzag',
  'glm4-moe-lite',
  'longcat-full',
  'longcat-zigzag-yarn',
];
const noAddon = { env: { LOZA_ADDON_PATH: '/nowhere/loza.node' } };

test('streaming attentions keep their sink and local blocks', () => {
  const sizes = { latentDim: 512, ropeDim: 64, sinkBlocks: 1, localBlocks: 7 };
  const row = 576 * 2;
  const bytes = (layerType: string, tokens: number) =>
    kvBytes({ ...sizes, layerType }, tokens, 'bf16');
  expect(bytes('01', 1)).toEqual({ full: 256 * row, loza: 256 * row });
  expect(bytes('01', 1024)).toEqual({ full: 2048 * row, loza: 2048 * row });
  expect(bytes('01', 8192)).toEqual({ full: 16384 * row, loza: (8192 + 1024) * row });
  expect(bytes('00', 8192).loza).toBe(bytes('00', 8192).full);
});

test('an FP8 token takes a byte a latent value, two a rope value and a scale', () => {
  const sizes = { latentDim: 512, ropeDim: 64, sinkBlocks: 1, localBlocks: 7, layerType: '01' };
  expect(kvBytes(sizes, 8192, 'f8e4m3')).toEqual({ full: 16384 * 644, loza: (8192 + 1024) * 644 });
});

describeCli('loza inspect', () => {
  test('needs no addon, and fits 100 columns', async () => {
    for (const dir of [tiny, ...goldens.map(golden)]) {
      const { code, stdout, stderr } = await loza(['inspect', dir], noAddon);
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      expect(Math.max(...stdout.split('\n').map((line) => line.length))).toBeLessThanOrEqual(100);
    }
  });

  test('draws the pattern and marks lengths beyond the positions', async () => {
    const { stdout } = await loza(['inspect', tiny]);
    expect(stdout).toContain('full         ╭●●╮  ╭●●\nstreaming  ○○╯  ╰○○╯');
    expect(stdout).toMatch(/^ +8K {2,}72\.0 MiB +40\.5 MiB +44%$/m);
    expect(stdout).toMatch(/^ +32K\* /m);
    expect(stdout).toContain("beyond the model's 8,192 positions");
  });

  test('--json holds the same facts', async () => {
    const object = await lozaJson<InspectObject>(['inspect', tiny], noAddon);
    expect(object).toMatchObject({ dir: tiny, files: 2, model: { layerType: '11001100' } });
    expect(object.weights.map(({ dtype }) => dtype)).toEqual(['BF16', 'F32']);
    expect(object.kv.map(({ tokens }) => tokens / 1024)).toEqual([8, 32, 128, 256, 1024]);
    expect(object.kv.map(({ beyond }) => beyond)).toEqual([false, true, true, true, true]);
    expect(object.kv[0]!.bytes).toEqual([
      { dtype: 'bfloat16', full: 72 * 2 ** 20, loza: 40.5 * 2 ** 20 },
    ]);
  });

  test('--dtype, --attention and --yarn-factor change what is shown', async () => {
    const flags = ['--dtype', 'float32', '--attention', '11111111', '--yarn-factor', '4'];
    const { model, kv } = await lozaJson<InspectObject>(['inspect', tiny, ...flags]);
    expect(model).toMatchObject({ layerType: '11111111', maxPosition: 32768 });
    expect(model.rope.factor).toBe(4);
    expect(kv[0]!.bytes).toEqual([
      { dtype: 'bfloat16', full: 72 * 2 ** 20, loza: 9 * 2 ** 20 },
      { dtype: 'float32', full: 144 * 2 ** 20, loza: 18 * 2 ** 20 },
    ]);
    const fp8 = await lozaJson<InspectObject>(['inspect', tiny, '--kv-dtype', 'fp8']);
    expect(fp8.kv[0]!.bytes.map(({ dtype }) => dtype)).toEqual(['bfloat16', 'fp8']);
    const { stdout } = await loza(['inspect', golden('longcat-zigzag-yarn')]);
    expect(stdout).toContain('YaRN: 512 positions stretched 8 times');
  });

  test('without streaming attentions there is no LoZA column', async () => {
    const { stdout } = await loza(['inspect', golden('longcat-full')]);
    expect(stdout).not.toContain('LoZA, ');
    expect(stdout).toContain('No attention streams');
  });

  test('errors', async () => {
    await expectFailure(['inspect', 'package.json'], /package\.json is a file/);
    await expectFailure(['inspect', tiny, 'more'], /too many arguments/);
    const files = readFiles(golden('longcat-full'), ['model.safetensors']);
    const dir = tempFolder({ ...files, 'config.json': '{"architectures": ["Nobody\\u001b[2J"]}' });
    await expectFailure(['inspect', dir], /Nobody.*not supported/);
    await expectJsonFailure(['inspect', dir], 'ERR_LOZA_UNSUPPORTED');
  });
});
