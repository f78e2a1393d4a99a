#include "update.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "partition.h"

namespace fastrnn {
namespace {

constexpr std::int64_t block = 1024;           // elements whose applied gradient is held
constexpr std::int64_t norm_block = 8192;      // of a sum of squares
constexpr std::int64_t worth_threads = 40000;  // elements
constexpr double seconds_each = 1e-9;

// work(first, count) for blocks of n elements, of which each thread has some in a row.
template <class Work>
void for_blocks(std::int64_t n, std::int64_t size, const Work& work) {
  const std::int64_t blocks = (n + size - 1) / size;
  Team team(n < worth_threads ? 1 : num_threads(), static_cast<double>(n) * seconds_each);
  team.run([&](int thread) {
    const Range own = part_of(blocks, team.size(), thread);
    for (std::int64_t b = own.first; b < own.first + own.count; ++b) {
      work(b * size, std::min(size, n - b * size));
    }
  });
}

// The gradient that is applied to some elements, in `held` unless it is the one given.
template <class T>
const T* applied(const Update<T>& u, std::int64_t first, std::int64_t count, T* __restrict held) {
  const T* const gradient = u.gradient + first;
  const bool clipped = u.clip < HUGE_VAL;
  if (u.factor == 1 && !clipped && u.l1 == 0 && u.l2 == 0) return gradient;
  const T* const parameter = u.parameter + first;
  const T factor = static_cast<T>(u.factor), clip = static_cast<T>(u.clip);
  const T l1 = static_cast<T>(u.l1), l2 = static_cast<T>(u.l2);
  for (std::int64_t i = 0; i < count; ++i) held[i] = gradient[i] * factor;
  if (clipped) {
    for (std::int64_t i = 0; i < count; ++i) {
      held[i] = held[i] < -clip ? -clip : held[i] > clip ? clip : held[i];  // NaN stays
    }
  }
  if (u.l1 != 0) {
    for (std::int64_t i = 0; i < count; ++i) {
      const T p = parameter[i];
      held[i] += l1 * static_cast<T>((p > 0) - (p < 0));
    }
  }
  if (u.l2 != 0) {
    for (std::int64_t i = 0; i < count; ++i) held[i] += l2 * parameter[i];
  }
  return held;
}

// work(count, parameter, applied gradient, first) for blocks of an update.
template <class T, class Work>
void for_elements(const Update<T>& u, const Work& work) {
  for_blocks(u.n, block, [&](std::int64_t first, std::int64_t count) {
    T held[block];
    work(count, u.parameter + first, applied(u, first, count, held), first);
  });
}

// A running average; 1 - keep is rounded once, as keep = 0.999 leaves it few digits in float32.
template <class T>
void average(std::int64_t count, T* __restrict mean, const T* value, double keep) {
  const T old = static_cast<T>(keep), fresh = static_cast<T>(1 - keep);
  for (std::int64_t i = 0; i < count; ++i) mean[i] = mean[i] * old + value[i] * fresh;
}

template <class T>
void average_square(std::int64_t count, T* __restrict mean, const T* value, double keep) {
  const T old = static_cast<T>(keep), fresh = static_cast<T>(1 - keep);
  for (std::int64_t i = 0; i < count; ++i) mean[i] = mean[i] * old + value[i] * value[i] * fresh;
}

}  // namespace

template <class T>
void sgd(const Update<T>& update, T* velocity, double momentum, bool nesterov) {
  const T rate = static_cast<T>(update.rate), m = static_cast<T>(momentum);
  for_elements(update, [&](std::int64_t count, T* __restrict p, const T* g, std::int64_t first) {
    if (!velocity) {
      for (std::int64_t i = 0; i < count; ++i) p[i] -= g[i] * rate;
      return;
    }
    T* __restrict v = velocity + first;
    for (std::int64_t i = 0; i < count; ++i) v[i] = v[i] * m + g[i];
    if (nesterov) {
      for (std::int64_t i = 0; i < count; ++i) p[i] -= (g[i] + v[i] * m) * rate;
    } else {
      for (std::int64_t i = 0; i < count; ++i) p[i] -= v[i] * rate;
    }
  });
}

template <class T>
void rmsprop(const Update<T>& update, T* square, T* mean, T* velocity, double alpha, double eps,
             double momentum) {
  const T rate = static_cast<T>(update.rate), m = static_cast<T>(momentum);
  const T least = static_cast<T>(eps);
  for_elements(update, [&](std::int64_t count, T* __restrict p, const T* g, std::int64_t first) {
    T step[block];
    T* const s = square + first;
    average_square(count, s, g, alpha);
    if (mean) {
      average(count, mean + first, g, alpha);
      for (std::int64_t i = 0; i < count; ++i) {
        const T rest = s[i] - mean[first + i] * mean[first + i];
        step[i] = rest < 0 ? T(0) : rest;  // which rounding can leave below 0
      }
    } else {
      std::copy_n(s, count, step);
    }
    for (std::int64_t i = 0; i < count; ++i) step[i] = g[i] / (std::sqrt(step[i]) + least);
    if (velocity) {
      T* __restrict v = velocity + first;
      for (std::int64_t i = 0; i < count; ++i) step[i] = v[i] = v[i] * m + step[i];
    }
    for (std::int64_t i = 0; i < count; ++i) p[i] -= step[i] * rate;
  });
}

template <class T>
void adam(const Update<T>& update, T* mean, T* square, T* largest, double keep, double beta1, double beta2,
          double eps, double bias1, double bias2) {
  const T kept = static_cast<T>(keep);
  const T least = static_cast<T>(eps), root = static_cast<T>(std::sqrt(bias2));
  const T rate = static_cast<T>(update.rate / bias1);
  for_elements(update, [&](std::int64_t count, T* __restrict p, const T* g, std::int64_t first) {
    T* const m = mean + first;
    T* s = square + first;
    if (keep != 1) {
      for (std::int64_t i = 0; i < count; ++i) p[i] *= kept;
    }
    average(count, m, g, beta1);
    average_square(count, s, g, beta2);
    if (largest) {
      T* __restrict most = largest + first;
      for (std::int64_t i = 0; i < count; ++i) most[i] = most[i] < s[i] || s[i] != s[i] ? s[i] : most[i];
      s = most;
    }
    for (std::int64_t i = 0; i < count; ++i) p[i] -= m[i] / (std::sqrt(s[i]) / root + least) * rate;
  });
}

template <class T>
double sum_of_squares(std::int64_t n, const T* x) {
  std::vector<double> sums(static_cast<std::size_t>((n + norm_block - 1) / norm_block));
  for_blocks(n, norm_block, [&](std::int64_t first, std::int64_t count) {
    double part[8] = {};
    std::int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      for (int j = 0; j < 8; ++j) {
        const double value = static_cast<double>(x[first + i + j]);
        part[j] += value * value;
      }
    }
    double sum = 0;
    for (; i < count; ++i) sum += static_cast<double>(x[first + i]) * static_cast<double>(x[first + i]);
    for (const double value : part) sum += value;
    sums[static_cast<std::size_t>(first / norm_block)] = sum;
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

template void sgd(const Update<float>&, float*, double, bool);
template void sgd(const Update<double>&, double*, double, bool);
template void rmsprop(const Update<float>&, float*, float*, float*, double, double, double);
template void rmsprop(const Update<double>&, double*, double*, double*, double, double, double);
template void adam(const Update<float>&, float*, float*, float*, double, double, double, double, double,
                   double);
template void adam(const Update<double>&, double*, double*, double*, double, double, double, double, double,
                   double);
template double sum_of_squares(std::int64_t, const float*);
template double sum_of_squares(std::int64_t, const double*);

}  // namespace fastrnn
