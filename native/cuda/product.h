// The products of ops/product.h on CUDA, in the ways that suit any of them. `operation` is named where
// a launch fails.
#pragma once

#include "cuda/cuda_stream.h"
#include "ops/product.h"

namespace loza::cuda {

// bf16 by bf16 through the matrix library. False when it cannot: then nothing was enqueued. The caller
// uses `scratch_in_use` bytes at the front of the stream's scratch memory (MatrixLibrary::Product).
bool run_library(const Product& product, CudaStream& stream, size_t scratch_in_use = 0);
bool run_library(const OuterProduct& product, CudaStream& stream);  // of one matrix

// bf16 activations: the tiles of gemm_tile.cuh and outer_tiles.cu, for whatever else cannot run.
// Weights of any type; those along n not f8e4m3.
void run_tiles(const Product& product, CudaStream& stream, const char* operation);
void run_tiles(const GroupedProduct& product, CudaStream& stream, const char* operation);
void run_tiles(const OuterProduct& product, CudaStream& stream, const char* operation);

// f32 activations: fp32 arithmetic (exact_tile.cuh, outer_exact.cu).
void run_exact(const Product& product, CudaStream& stream, const char* operation);
void run_exact(const GroupedProduct& product, CudaStream& stream, const char* operation);
void run_exact(const OuterProduct& product, CudaStream& stream, const char* operation);

}  // namespace loza::cuda
