// The physical limits of this machine, measured: what every benchmark is compared with.
#pragma once

#include <cstddef>

namespace fastrnn {

// FLOP/s of independent fused multiply-adds in registers, all threads together (two per FMA lane).
template <class T>
double fma_peak(int threads, double seconds);

// Bytes per second when each thread reads its own `bytes` of memory again and again.
double read_bandwidth(std::size_t bytes, int threads, double seconds);

}  // namespace fastrnn
