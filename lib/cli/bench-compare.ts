import { readFile } from 'node:fs/promises';
import { Option, type Command } from 'commander';

import { compareRuns, describeComparison, parseRun } from '../bench/compare-runs';
import { fileError } from '../checkpoint/files';
import { BadResult, type Context } from './context';
import { plural } from './format';
import { realNumber } from './options';

interface CompareFlags {
  failBelow?: number;
  output: 'md' | 'json';
}

const examples = `
Tests are matched by prompt, generation, depth, sequences, tokens of a step and attention.
With --fail-below R the exit code is 1 where a ratio is below R, or where no test matches.

Examples:
  loza bench compare before.json after.json
  loza bench compare before.json after.json --fail-below 0.97`;

export function registerBenchCompare(bench: Command, context: Context): void {
  bench
    .command('compare')
    .description('Compares two results of loza bench -o json: ratios with their spread.')
    .argument('<before>', 'the file that ratios refer to')
    .argument('<after>', 'the file to judge')
    .option('--fail-below <ratio>', 'exit with 1 where it is slower than this', realNumber(0, 1e6))
    .addOption(
      new Option('-o, --output <format>', 'md is Markdown').choices(['md', 'json']).default('md'),
    )
    .addHelpText('after', examples)
    .action((before: string, after: string, flags: CompareFlags) =>
      compare([before, after], flags, context),
    );
}

async function compare(
  files: readonly [string, string],
  { failBelow, output }: CompareFlags,
  context: Context,
): Promise<void> {
  context.json ||= output === 'json';
  const [before, after] = await Promise.all(files.map(readRun));
  const comparison = compareRuns(before ?? [], after ?? []);
  if (context.json) context.printJson(comparison);
  else context.print(describeComparison(comparison));
  if (failBelow === undefined) return;
  if (comparison.rows.length === 0) throw new BadResult('no test is in both files');
  const slow = comparison.rows.filter(({ ratio }) => !(ratio.mean >= failBelow));
  if (slow.length === 0) return;
  const which = slow.map(({ test, attention }) => `${test} ${attention}`).join(', ');
  throw new BadResult(`${plural(slow.length, 'test')} below ${failBelow}: ${which}`);
}

async function readRun(file: string) {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    throw fileError(error, file);
  }
  return parseRun(text, file);
}
