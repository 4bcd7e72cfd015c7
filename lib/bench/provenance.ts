import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

import type { DeviceKind } from '../native/binding';
import { listDevices } from '../native/device';

/** Where figures come from. */
export interface Provenance {
  date: string;
  device: { kind: DeviceKind; name: string; cores: number; memoryBytes: number };
  /** Version of the GPU's driver; null on the CPU, or where nothing tells it. */
  driver: string | null;
}

export function readProvenance(kind: DeviceKind): Provenance {
  const found = listDevices().find((device) => device.kind === kind);
  const { name = kind, cores = 0, memoryBytes = 0 } = found ?? {};
  return {
    date: new Date().toISOString().slice(0, 10),
    device: { kind, name, cores, memoryBytes },
    driver: kind === 'cuda' ? readDriver() : null,
  };
}

function readDriver(): string | null {
  try {
    const text = readFileSync('/proc/driver/nvidia/version', 'utf8');
    const version = /\s(\d+\.\d+(?:\.\d+)?)\s/.exec(text)?.[1];
    if (version !== undefined) return version;
  } catch {
    // a container may hide it
  }
  try {
    const args = ['--query-gpu=driver_version', '--format=csv,noheader'];
    const options = { encoding: 'utf8', timeout: 10_000 } as const;
    const text = execFileSync('nvidia-smi', args, {
      ...options,
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    return text.trim().split('\n')[0] ?? null;
  } catch {
    return null;
  }
}
