import { listDevices } from '../../lib/native/device';
import { Lab } from '../../lib/selftest/lab';

export type { Lab };

/** Runs `define` once a device of this build; unusable ones give a skipped test that says why. */
export function forEachDevice(name: string, define: (lab: Lab) => void): void {
  for (const { kind, usable, reason } of listDevices()) {
    describe(`${name} on ${kind}`, () => {
      if (!usable) {
        test.skip(`skipped: ${reason}`, () => {});
        return;
      }
      const lab = new Lab(kind);
      afterAll(() => lab.close());
      define(lab);
    });
  }
}

/** `test` where operations look at the values they get; CUDA kernels cannot fail the stream. */
export function testDataChecks({ kind }: Lab): jest.It {
  return kind === 'cuda' ? test.skip : test;
}
