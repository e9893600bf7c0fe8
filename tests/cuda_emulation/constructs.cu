// Small kernels for test_emulator.py: what they may use, and one for each fault that has to be reported.
#include <algorithm>
#include <map>
#include <vector>

namespace {

using Values = std::vector<double>;

// --- sound kernels

__global__ void shuffles(double* out) {
  const int lane = threadIdx.x % 32;
  float sum = static_cast<float>(threadIdx.x);
#pragma unroll
  for (int by = 16; by > 0; by /= 2) {
    sum += __shfl_down_sync(0xffffffffu, sum, by);
  }
  const double all = __shfl_sync(0xffffffffu, static_cast<double>(sum), 0);
  const int xored = __shfl_xor_sync(0xffffffffu, lane, 5), up = __shfl_up_sync(0xffffffffu, lane, 3, 8);
  const unsigned greatest = __reduce_max_sync(0xffffffffu, threadIdx.x);
  out[threadIdx.x] = all + 1000 * xored + 100000 * up + 1e7 * greatest;
}

__global__ void votes(double* out) {
  const int lane = threadIdx.x % 32;
  unsigned bits;
  if (lane < 16) {
    bits = __ballot_sync(0x0000ffffu, lane % 2);
  } else {
    bits = __ballot_sync(0xffff0000u, lane % 3 == 0);
  }
  const int any = __any_sync(0xffffffffu, lane == 7), all = __all_sync(0xffffffffu, lane < 31);
  const int count = __syncthreads_count(threadIdx.x % 5 == 0);
  const int either = __syncthreads_or(threadIdx.x == 40), both = __syncthreads_and(threadIdx.x != 40);
  out[threadIdx.x] = __popc(bits) + 100 * any + 200 * all + 1000 * count + 1e6 * either + 2e6 * both;
}

// A 32 x 2 tile turned round, row sums in a second part of the same memory.
template <typename T, int kRows>
__global__ void __launch_bounds__(64) dynamic(double* out) {
  extern __shared__ __align__(16) unsigned char raw[];
  T* values = reinterpret_cast<T*>(raw);
  T* const sums = values + 32 * kRows;
  values[threadIdx.x] = static_cast<T>(threadIdx.x);
  __syncthreads();
  if (threadIdx.x < kRows) {
    T sum = T(0);
    for (int i = 0; i < 32; ++i) {
      sum += values[threadIdx.x * 32 + i];
    }
    sums[threadIdx.x] = sum;
  }
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x % kRows * 32 + threadIdx.x / kRows] + 1000 * sums[0];
}

struct Entry {
  int row, column;
};

__global__ void fixed(double* out) {
  __shared__ Entry entries[2][32];
  __shared__ int total, most;
  if (threadIdx.x + threadIdx.y == 0) {
    total = 0;
    most = -1;
  }
  entries[threadIdx.y][threadIdx.x] = {static_cast<int>(threadIdx.y), static_cast<int>(threadIdx.x)};
  __syncthreads();
  const Entry other = entries[1 - threadIdx.y][31 - threadIdx.x];
  atomicAdd(&total, 2);
  atomicMax(&most, other.column);
  __syncthreads();
  out[threadIdx.y * 32 + threadIdx.x] = 100 * other.row + other.column + 1000 * total + 1e6 * most;
}

__global__ void warps(double* out) {
  __shared__ double sums[64];
  const int lane = threadIdx.x % 32;
  sums[threadIdx.x] = lane;
  for (int half = 16; half > 0; half /= 2) {
    __syncwarp();
    if (lane < half) {
      sums[threadIdx.x] += sums[threadIdx.x + half];
    }
  }
  __syncwarp();
  out[threadIdx.x] = sums[threadIdx.x - lane];
}

__global__ void places(double* out) {
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  atomicAdd(out + block, 1.0 + thread);
  atomicCAS(reinterpret_cast<unsigned long long*>(out + 12), 0ull, 1ull + block);
}

// --- faults

enum Fault {
  kReadRace, kWriteRace, kOverwriteRace, kBallotOrdersNothing, kAtomicRace, kUnwritten, kFormerBlock, kAbove, kBelow,
  kRow, kBranch, kReturned, kTwoBarriers, kLoops, kMissingLane, kReturnedLane, kNotInMask, kOtherMasks, kForeignLane,
  kWholeMask, kNone
};

__global__ void __launch_bounds__(256) faulty(Fault fault, double* out) {
  __shared__ double values[64];
  __shared__ int table[4][5];
  const int at = threadIdx.x, lane = at % 32;
  const unsigned all = 0xffffffffu;
  if (fault == kReadRace || fault == kBallotOrdersNothing) {
    values[at] = at;
    if (fault == kBallotOrdersNothing) {
      __ballot_sync(all, true);
    }
    out[at] = values[at ^ 1];
  } else if (fault == kWriteRace) {
    values[at / 2] = at;
  } else if (fault == kOverwriteRace) {
    values[at] = at;
    __syncthreads();
    const double other = values[63 - at];
    values[at] = other;
  } else if (fault == kAtomicRace) {
    values[at] = 0;
    __syncthreads();
    atomicAdd(&values[0], 1.0);
    out[at] = values[0];
  } else if (fault == kUnwritten) {
    out[at] = values[at];
  } else if (fault == kFormerBlock) {
    if (blockIdx.x == 0) {
      values[at] = at;
    }
    out[at] = values[at];
  } else if (fault == kAbove) {
    values[at + 1] = 0;
  } else if (fault == kBelow) {
    values[at - 1] = 0;
  } else if (fault == kRow) {
    if (at < 24) {
      table[at / 6][at % 6] = 0;
    }
  } else if (fault == kBranch) {
    if (at != 9) {
      __syncthreads();
    }
    out[at] = 1;
  } else if (fault == kReturned) {
    if (at > 40) {
      return;
    }
    __syncthreads();
  } else if (fault == kTwoBarriers) {
    if (at < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if (fault == kLoops) {
    for (int i = 0; i < 2 + at / 32; ++i) {
      __syncthreads();
    }
  } else if (fault == kMissingLane) {
    if (lane != 3) {
      out[at] = __ballot_sync(all, true);
    }
    __syncthreads();
  } else if (fault == kReturnedLane) {
    if (lane == 3) {
      return;
    }
    out[at] = __shfl_xor_sync(all, lane, 1);
  } else if (fault == kNotInMask) {
    out[at] = __any_sync(0x7fffffffu, true);
  } else if (fault == kOtherMasks) {
    out[at] = __ballot_sync(lane < 16 ? 0xffffffffu : 0xffff0000u, true);
  } else if (fault == kWholeMask) {
    out[at] = __ballot_sync(all, true);
  } else if (fault == kForeignLane) {
    if (lane < 16) {
      out[at] = __shfl_down_sync(0x0000ffffu, lane, 1);
    }
  }
}

__global__ void large() {
  __shared__ double most[6144];
  __shared__ char rest[1];
  if (threadIdx.x == 0) {
    most[0] = 0;
    rest[0] = 0;
  }
}

struct Guarded {
  Guarded() {
    ++emu::guards;
  }
  ~Guarded() {
    --emu::guards;
  }
};

void run(const std::string& name, Values& out) {
  double* to = out.data();
  const cudaStream_t stream = nullptr;
  const std::map<std::string, Fault> faults = {
      {"read race", kReadRace}, {"write race", kWriteRace}, {"overwrite race", kOverwriteRace},
      {"ballot orders nothing", kBallotOrdersNothing}, {"atomic race", kAtomicRace}, {"unwritten", kUnwritten},
      {"former block", kFormerBlock}, {"above", kAbove}, {"below", kBelow}, {"row", kRow}, {"branch", kBranch},
      {"returned", kReturned}, {"two barriers", kTwoBarriers}, {"loops", kLoops}, {"missing lane", kMissingLane},
      {"returned lane", kReturnedLane}, {"not in mask", kNotInMask}, {"other masks", kOtherMasks},
      {"foreign lane", kForeignLane}};
  if (name == "no guard") {
    faulty<<<1, 64, 0, stream>>>(kNone, to);
    return;
  }
  const Guarded guard;
  if (faults.count(name)) {
    faulty<<<2, 64, 0, stream>>>(faults.at(name), to);
  } else if (name == "shuffles") {
    shuffles<<<1, 64, 0, stream>>>(to);
  } else if (name == "votes") {
    votes<<<1, 64, 0, stream>>>(to);
  } else if (name == "dynamic float") {
    dynamic<float, 2><<<1, 64, 66 * sizeof(float), stream>>>(to);
  } else if (name == "dynamic double") {
    dynamic<double, 2><<<1, 64, 66 * sizeof(double), stream>>>(to);
  } else if (name == "dynamic too short") {
    dynamic<double, 2><<<1, 64, 65 * sizeof(double), stream>>>(to);
  } else if (name == "fixed") {
    fixed<<<3, dim3(32, 2), 0, stream>>>(to);
  } else if (name == "warps") {
    warps<<<1, 64, 0, stream>>>(to);
  } else if (name == "places") {
    places<<<dim3(2, 3, 2), dim3(3, 5, 7), 0, stream>>>(to);
  } else if (name == "partial warp") {
    faulty<<<1, 48, 0, stream>>>(kWholeMask, to);
  } else if (name == "large") {
    large<<<1, 32, 0, stream>>>();
  } else if (name == "large dynamic") {
    faulty<<<1, 64, 48 * 1024 + 1, stream>>>(kNone, to);
  } else if (name == "large together") {
    faulty<<<1, 64, 48 * 1024 - 100, stream>>>(kNone, to);
  } else if (name == "rows of blocks") {
    faulty<<<dim3(1, 65536), 64, 0, stream>>>(kNone, to);
  } else if (name == "no blocks") {
    faulty<<<0, 64, 0, stream>>>(kNone, to);
  } else if (name == "2**32 blocks") {
    faulty<<<int64_t{1} << 32, 64, 0, stream>>>(kNone, to);
  } else if (name == "threads") {
    faulty<<<1, 1025, 0, stream>>>(kNone, to);
  } else if (name == "layers of threads") {
    faulty<<<1, dim3(1, 1, 65), 0, stream>>>(kNone, to);
  } else if (name == "bounds") {
    faulty<<<1, 257, 0, stream>>>(kNone, to);
  } else if (name == "unchecked") {
    faulty<<<1, 64, 0, stream>>>(kNone, to);
    faulty<<<1, 64, 0, stream>>>(kNone, to);
  } else {
    throw std::runtime_error("no such case");
  }
}

} // namespace

// Runs a case; returns what it says, "" for nothing.
extern "C" const char* run_case(const char* name, double* out, int count) {
  static std::string message;
  Values values(count, 0.0);
  message.clear();
  try {
    run(name, values);
  } catch (const std::exception& error) {
    message = error.what();
  }
  emu::check_launch();
  std::copy(values.begin(), values.end(), out);
  return message.c_str();
}
