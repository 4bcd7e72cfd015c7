import { InvalidArgumentError, type Command } from 'commander';

import { LozaError, throwIfAborted } from '../errors';
import type { DeviceKind } from '../native/binding';
import { activationTypes, Device, listDevices } from '../native/device';
import { Lab } from '../selftest/lab';
import { operations, type AnyOperation } from '../selftest/operations';
import { runCase } from '../selftest/run-case';
import { BadResult, type Context } from './context';
import { formatCount, formatTable, formatTiny, oneLine, plural } from './format';
import { addLoadFlags, usageError, type LoadFlags } from './options';
import { startProgress, type Progress } from './progress';

interface SelftestFlags extends LoadFlags {
  ops?: RegExp;
}

/** What became of the cases of one operation. */
export interface OperationReport {
  operation: string;
  /** The type that activations had. */
  activation: 'f32' | 'bf16';
  /** Cases that ran. */
  cases: number;
  skipped: { case: string; reason: string }[];
  /** The largest of all cases, and the case that has it. */
  relativeError: number;
  worstCase: string | undefined;
  failures: { case: string; message: string }[];
  passed: boolean;
  /** The last failure took the device with it: nothing more can run. */
  stopped: boolean;
}

const examples = `
Every operation of the compiled addon runs on small inputs and is compared with the same formula
in float64. Memory around inputs and results is NaN, so that strays are seen.
On a GPU, all of it runs with activations in bfloat16, where relative errors up to 4e-3 are
rounding, and then in float32; --dtype chooses one of them.
A failure gives exit code 1; cases that a device cannot run are counted as skipped.

Examples:
  loza selftest
  loza selftest --device cuda --dtype bfloat16
  loza selftest --ops "linear|attention" --json`;

export function registerSelftest(program: Command, context: Context): void {
  const command = program
    .command('selftest')
    .description('Checks every operation of the addon on this machine against float64.')
    .option('--ops <regex>', 'only operations whose name matches', parseRegex);
  addLoadFlags(command, ['device', 'dtype'])
    .addHelpText('after', examples)
    .action((flags: SelftestFlags) => selftest(flags, context));
}

export function parseRegex(text: string): RegExp {
  try {
    return new RegExp(text);
  } catch {
    throw new InvalidArgumentError('It must be a regular expression.');
  }
}

async function selftest({ device, dtype, ops }: SelftestFlags, context: Context): Promise<void> {
  const chosen = operations.filter(({ operation }) => ops?.test(operation) ?? true);
  if (chosen.length === 0) {
    const known = operations.map(({ operation }) => operation).join(', ');
    throw usageError(`no operation matches ${String(ops)}`, `There are ${known}`);
  }
  const kind = chooseKind(device ?? 'auto');
  const name = listDevices().find((one) => one.kind === kind)?.name ?? kind;
  const activations = chooseActivations(kind, dtype ?? 'auto');
  const reports: OperationReport[] = [];
  for (const activation of activations) {
    if (reports.at(-1)?.stopped) break;
    const lab = new Lab(kind, activation);
    lab.open(); // or says why it cannot be
    const progress = startProgress(context, `selftest in ${activation}`, 'cases');
    try {
      reports.push(...(await runAll(lab, chosen, progress, context.signal)));
    } finally {
      progress.stop();
      lab.close();
    }
  }
  const failed = reports.reduce((sum, { failures }) => sum + failures.length, 0);
  const cases = reports.reduce((sum, report) => sum + report.cases, 0);
  const passed = failed === 0;
  const where = `${oneLine(name)} (${kind}), activations in ${activations.join(' and ')}`;
  if (context.json) {
    context.printJson({ device: kind, name, activations, operations: reports, passed });
  } else {
    context.print(describe(reports, `${plural(cases, 'case')} on ${where}`));
  }
  if (!passed) throw new BadResult(`${failed} of ${plural(cases, 'case')} failed on ${kind}`);
}

export function chooseKind(wanted: NonNullable<LoadFlags['device']>): DeviceKind {
  if (wanted !== 'auto') return wanted;
  return listDevices().some(({ kind, usable }) => kind === 'cuda' && usable) ? 'cuda' : 'cpu';
}

/** All that the device has, unless one is wanted. */
function chooseActivations(
  kind: DeviceKind,
  dtype: NonNullable<LoadFlags['dtype']>,
): readonly ('f32' | 'bf16')[] {
  const types = activationTypes[kind];
  if (dtype === 'auto') return types;
  const wanted = dtype === 'float32' ? 'f32' : 'bf16';
  if (types.includes(wanted)) return [wanted];
  throw usageError(`activations on ${kind} are not ${dtype}`, 'Leave --dtype out');
}

async function runAll(
  lab: Lab,
  chosen: readonly AnyOperation[],
  progress: Progress,
  signal: AbortSignal,
): Promise<OperationReport[]> {
  const total = chosen.reduce((sum, { cases }) => sum + cases.length, 0);
  const reports: OperationReport[] = [];
  let done = 0;
  const onCase = () => {
    throwIfAborted(signal);
    progress.update(done++, total);
  };
  for (const operation of chosen) {
    const report = await runOperation(lab, operation, onCase);
    reports.push(report);
    if (report.stopped) break;
  }
  return reports;
}

/** Runs the cases of an operation; `onCase` is called before each. A failure does not end it. */
export async function runOperation(
  lab: Lab,
  operation: AnyOperation,
  onCase: () => void = () => {},
): Promise<OperationReport> {
  const report: OperationReport = {
    ...{ operation: operation.operation, activation: lab.activation, cases: 0, skipped: [] },
    ...{ relativeError: 0, worstCase: undefined, failures: [], passed: true, stopped: false },
  };
  for (const c of operation.cases) {
    onCase();
    const reason = operation.skip?.(c, lab.kind, lab.activation);
    if (reason !== undefined) {
      report.skipped.push({ case: c.name, reason });
      continue;
    }
    report.cases++;
    try {
      const { relativeError, failures } = await runCase(lab, operation, c);
      if (!(relativeError <= report.relativeError) || report.worstCase === undefined) {
        [report.relativeError, report.worstCase] = [relativeError, c.name];
      }
      if (failures.length > 0) {
        report.failures.push({ case: c.name, message: failures.join('; ') });
      }
    } catch (error) {
      if (!LozaError.isInstance(error) || endsRun(error)) throw error;
      report.failures.push({ case: c.name, message: `${error.code}: ${error.message}` });
      report.stopped = isLost(lab.kind, error);
      if (report.stopped) break;
    }
  }
  report.passed = report.failures.length === 0;
  return report;
}

function endsRun({ code }: LozaError): boolean {
  return code === 'ERR_LOZA_CLOSED' || code === 'ERR_LOZA_ABORTED';
}

/** Whether an error took the process's access to the GPU with it. */
function isLost(kind: DeviceKind, { code }: LozaError): boolean {
  if (code !== 'ERR_LOZA_CUDA') return false;
  try {
    new Device(kind).close();
    return false;
  } catch {
    return true;
  }
}

function describe(reports: readonly OperationReport[], where: string): string {
  const right = { align: 'right' } as const;
  const columns = [
    { title: 'operation' },
    { title: 'in' },
    { title: 'cases', ...right },
    { title: 'skipped', ...right },
    { title: 'worst error', ...right },
    { title: 'in case' },
    { title: '' },
  ];
  const rows = reports.map((report) => [
    report.operation,
    report.activation,
    formatCount(report.cases),
    report.skipped.length === 0 ? '-' : formatCount(report.skipped.length),
    report.worstCase === undefined ? '-' : formatTiny(report.relativeError),
    report.relativeError === 0 ? '-' : (report.worstCase ?? '-'),
    report.passed ? 'PASS' : 'FAIL',
  ]);
  const skipped = reports.flatMap((report) =>
    report.skipped.map(
      (one) => `skipped  ${report.operation} in ${report.activation}, ${one.case}: ${one.reason}`,
    ),
  );
  const failures = reports.flatMap((report) =>
    report.failures.map(
      (one) =>
        `FAIL  ${report.operation} in ${report.activation}, ${one.case}: ${oneLine(one.message)}`,
    ),
  );
  if (reports.at(-1)?.stopped)
    failures.push('The device is lost: cases behind this one did not run');
  const verdict = `${failures.length === 0 ? 'PASS' : 'FAIL'}  ${where}; errors are relative`;
  return [formatTable(columns, rows), skipped.join('\n'), failures.join('\n'), verdict]
    .filter((part) => part !== '')
    .join('\n\n');
}
