// Functions that both the host and, under nvcc, the device call.
#pragma once

#if defined(__CUDACC__) || defined(__HIPCC__)
#define INSTSEG_HOST_DEVICE __host__ __device__ inline
#else
#define INSTSEG_HOST_DEVICE inline
#endif
