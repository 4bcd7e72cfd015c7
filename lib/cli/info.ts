import path from 'node:path';
import type { Command } from 'commander';

import { LozaError } from '../errors';
import { addon } from '../native/binding';
import { probeDevices, type DeviceReport } from '../probe-devices';
import { packageRoot, readBuildInfo, type BuildInfo } from './build-info';
import { BadResult, type Context } from './context';
import { formatBytes, formatFields, oneLine, plural } from './format';

interface AddonReport {
  path: string | null;
  /** Whether CUDA kernels were compiled in; null when there is no addon. */
  cuda: boolean | null;
  error: { code: string; message: string } | null;
}

interface InfoReport extends BuildInfo {
  package: string;
  addon: AddonReport;
  devices: DeviceReport[];
}

const examples = `
A device that cannot be used says why. Without the compiled addon the exit code is 1.

Example:
  loza info --json | jq '.devices[] | select(.usable) | .kind'`;

export function registerInfo(program: Command, context: Context): void {
  program
    .command('info')
    .description('Shows this build of loza and the devices it can use.')
    .addHelpText('after', examples)
    .action(() => info(context));
}

async function info(context: Context): Promise<void> {
  const addonReport = reportAddon();
  const devices = addonReport.error === null ? await probeDevices() : [];
  const report = { ...readBuildInfo(), package: packageRoot, addon: addonReport, devices };
  if (context.json) context.printJson(report);
  else context.print(describe(report));
  if (addonReport.error !== null) throw new BadResult(addonReport.error.message);
}

function reportAddon(): AddonReport {
  try {
    const { cuda } = addon();
    return { path: addonPath(), cuda, error: null };
  } catch (error) {
    if (!LozaError.isInstance(error)) throw error;
    const { code, message } = error;
    return { path: null, cuda: null, error: { code, message: oneLine(message) } };
  }
}

/** Where the addon was loaded from: the loader leaves it in the cache of modules. */
function addonPath(): string | null {
  const override = process.env['LOZA_ADDON_PATH'];
  if (override !== undefined) return path.resolve(override);
  return Object.keys(require.cache).find((file) => path.basename(file) === 'loza.node') ?? null;
}

function describe({ version, commit, node, package: root, addon, devices }: InfoReport): string {
  const cuda = addon.cuda === true ? 'with CUDA kernels' : 'without CUDA kernels';
  return formatFields([
    ['loza', commit === null ? version : `${version} (commit ${commit})`],
    ['node', node],
    ['package', root],
    ['addon', addon.error === null ? `${addon.path ?? 'loaded'}\n${cuda}` : 'cannot be loaded'],
    ...devices.map((device): [string, string] => [device.kind, describeDevice(device)]),
  ]);
}

function describeDevice({ name, usable, reason, cores, memoryBytes }: DeviceReport): string {
  if (!usable) return `not usable: ${oneLine(reason)}`;
  const size = [
    ...(cores > 0 ? [plural(cores, 'core')] : []),
    ...(memoryBytes > 0 ? [formatBytes(memoryBytes)] : []),
  ];
  return [name, ...size].join(', ');
}
