import type { DeviceKind } from '../../lib/native/binding';
import { activationTypes, listDevices } from '../../lib/native/device';
import { Lab } from '../../lib/selftest/lab';

export type { Lab };

/** Runs `define` once a device of this build; unusable ones give a skipped test that says why. */
export function forEachDeviceKind(name: string, define: (kind: DeviceKind) => void): void {
  for (const { kind, usable, reason } of listDevices()) {
    describe(`${name} on ${kind}`, () => {
      if (usable) define(kind);
      else test.skip(`skipped: ${reason}`, () => {});
    });
  }
}

/** The same with a lab, once for each type that activations can have. */
export function forEachDevice(name: string, define: (lab: Lab) => void): void {
  forEachDeviceKind(name, (kind) => {
    describe.each(activationTypes[kind])('in %s', (activation) => {
      const lab = new Lab(kind, activation);
      afterAll(() => lab.close());
      define(lab);
    });
  });
}

/**
 * `test` where operations look at the values they get. CUDA kernels cannot fail the stream: bad data
 * gives NaN rows there, and the test is skipped.
 */
export function testDataChecks(kind: DeviceKind): jest.It {
  return kind === 'cuda' ? test.skip : test;
}
