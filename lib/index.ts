// The public API, nothing else. Importing it loads no native code.
export { LanguageModel, type ScoreOptions, type ScoreResult } from './language-model';
export type { Prompt } from './prompt';
export type { Session, SessionOptions } from './session';
export { probeDevices, type DeviceReport } from './probe-devices';
export { LozaError, type LozaErrorCode, type LozaErrorDetails } from './errors';
export type { LoadOptions, LoadProgress, RopeOptions } from './load-options';
export type { AttentionOption } from './checkpoint/streaming-config';
export type { GenerateOptions, GenerateProgress } from './runner/sampling';
export type { EngineLoad } from './engine/engine';
export type { Generation } from './engine/generation';
export type {
  FinishReason,
  GeneratePart,
  GenerateResult,
  GenerateTimings,
  GenerateUsage,
} from './engine/generate-job';
export type { KvReport, LoadedModelInfo, MemoryReport, ModelInfo, RopeInfo } from './model-info';
export type { ChatMessage } from './tokenizer/chat-template';
