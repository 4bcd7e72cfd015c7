import { runOperation, type OperationReport } from '../../lib/cli/selftest';
import type { AnyOperation } from '../../lib/selftest/operations';
import { swiglu } from '../../lib/selftest/cases/swiglu';
import { Lab } from '../../lib/selftest/lab';
import { runCase } from '../../lib/selftest/run-case';
import { describeCli, expectFailure, loza, lozaJson } from './cli';

interface SelftestObject {
  device: string;
  activations: string[];
  operations: OperationReport[];
  passed: boolean;
}

describeCli('loza selftest', () => {
  const flags = ['selftest', '--device', 'cpu', '--ops', '^(rms_norm|swiglu)$'];

  test('reports the operations that match', async () => {
    const report = await lozaJson<SelftestObject>(flags);
    expect(report).toMatchObject({ device: 'cpu', activations: ['f32'], passed: true });
    expect(report.operations.map(({ operation }) => operation)).toEqual(['rms_norm', 'swiglu']);
    for (const { cases, relativeError, failures, passed } of report.operations) {
      expect(cases).toBeGreaterThan(3);
      expect(relativeError).toBeGreaterThan(0);
      expect(relativeError).toBeLessThan(1e-6);
      expect({ failures, passed }).toEqual({ failures: [], passed: true });
    }
  });

  test('prints a table', async () => {
    const { code, stdout, stderr } = await loza(flags);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^rms_norm +f32 +\d+ .* PASS$/m);
    expect(stdout).toMatch(/^PASS {2}\d+ cases on .*\(cpu\), activations in f32/m);
  });

  test('operations that do not exist, and what is no expression, are errors', async () => {
    await expectFailure(['selftest', '--ops', 'nothing'], /no operation matches.*There are cast,/);
    await expectFailure(['selftest', '--ops', '('], /must be a regular expression/);
    await expectFailure([...flags, '--dtype', 'bfloat16'], /activations on cpu are not bfloat16/);
  });
});

describe('a failing case', () => {
  const lab = new Lab('cpu');
  afterAll(() => lab.close());

  const wrong = {
    ...swiglu,
    cases: swiglu.cases.slice(0, 3),
    reference: (c: (typeof swiglu.cases)[number], host: ReturnType<typeof swiglu.inputs>) => {
      const { out } = swiglu.reference(c, host);
      return { out: out!.map((value, i) => (i === 1 && c.rows === 5 ? value + 0.5 : value)) };
    },
  };

  test('is reported with its first bad value', async () => {
    const { failures, relativeError } = await runCase(lab, wrong, wrong.cases[1]!);
    expect(failures).toEqual([expect.stringMatching(/^out: first bad value at \[0, 1\]: /)]);
    expect(relativeError).toBeGreaterThan(1e-3);
  });

  test('does not stop the others', async () => {
    const report = await runOperation(lab, wrong);
    expect(report).toMatchObject({ cases: 3, passed: false, worstCase: 'an odd width' });
    expect(report.failures.map((failure) => failure.case)).toEqual(['an odd width']);
  });

  test('an error of the operation fails its case alone', async () => {
    const throwing: AnyOperation = {
      ...(swiglu as AnyOperation),
      cases: swiglu.cases.slice(0, 2),
      skip: ({ name }) => (name === 'one value' ? 'too small' : undefined),
      run: (ops) => ({ out: ops.rmsNorm(ops.activation(2, 8), ops.float(7), 1e-5) }),
    };
    const { skipped, failures } = await runOperation(lab, throwing);
    expect(skipped).toEqual([{ case: 'one value', reason: 'too small' }]);
    expect(failures).toEqual([
      {
        case: 'an odd width',
        message: expect.stringMatching(/^ERR_LOZA_INTERNAL: rms_norm weight/),
      },
    ]);
  });
});
