#pragma once
#define C10_CUDA_KERNEL_LAUNCH_CHECK() ::emu::check_launch()
#define C10_CUDA_CHECK(call) static_cast<void>(call)
