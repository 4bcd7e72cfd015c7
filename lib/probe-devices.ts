import type { NativeDeviceInfo } from './native/binding';
import { listDevices } from './native/device';

/** A device this build knows of. `reason` says why it cannot be used; it is empty when it can. */
export type DeviceReport = NativeDeviceInfo;

/** Every device, usable or not. Rejects with ERR_LOZA_ADDON_NOT_FOUND when the addon is not built. */
export async function probeDevices(): Promise<DeviceReport[]> {
  return Promise.resolve(listDevices());
}
