// CUDA on the CPU: included before every rewritten source. Nothing here knows PyTorch; torch_emulation.h does.
#pragma once

#include "cuda_types.h"

#ifdef EMU_REAL_THREADS
#include "threads.h"
#else
#include "scheduler.h"
#include "shared.h"
#endif

#include "intrinsics.h"
