#pragma once
#include "cuda_types.h"
namespace c10::cuda {
struct CUDAStream {
  operator cudaStream_t() const {
    return nullptr;
  }
  cudaStream_t stream() const {
    return nullptr;
  }
};
inline CUDAStream getCurrentCUDAStream() {
  return {};
}
} // namespace c10::cuda
