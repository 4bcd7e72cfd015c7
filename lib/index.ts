// The public API, nothing else. Importing it loads no native code.
export { LanguageModel, type Prompt, type ScoreOptions, type ScoreResult } from './language-model';
export {
  evaluate,
  type EvalAnswer,
  type EvalArm,
  type EvalCell,
  type EvalResult,
} from './eval/evaluate';
export type { EvalOptions, EvalProgress } from './eval/options';
export type { PerplexityBucket } from './eval/perplexity';
export type { TaskName } from './eval/tasks';
export { probeDevices, type DeviceReport } from './probe-devices';
export { LozaError, type LozaErrorCode, type LozaErrorDetails } from './errors';
export type { LoadOptions, LoadProgress, RopeOptions } from './load-options';
export type { AttentionOption } from './checkpoint/streaming-config';
export type { GenerateOptions, GenerateProgress } from './runner/sampling';
export type { Generation } from './engine/generation';
export type {
  FinishReason,
  GeneratePart,
  GenerateResult,
  GenerateTimings,
} from './engine/generate-job';
export type { KvReport, LoadedModelInfo, MemoryReport, ModelInfo, RopeInfo } from './model-info';
export type { ChatMessage } from './tokenizer/chat-template';
