// Loops over the elements of a parameter, plain ones that the compiler makes vectors of. Nothing here is
// fused or reordered, so that all instruction sets give the same bits.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace fastrnn::FASTRNN_TARGET {

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

// The gradient that is applied, in `held` unless it is the one given.
template <class T>
const T* applied(const Update<T>& u, T* __restrict held) {
  const T* const gradient = u.gradient;
  const bool clipped = u.clip < __builtin_huge_val();
  if (u.factor == 1 && !clipped && u.l1 == 0 && u.l2 == 0) return gradient;
  const T* const parameter = u.parameter;
  const T factor = static_cast<T>(u.factor), clip = static_cast<T>(u.clip);
  const T l1 = static_cast<T>(u.l1), l2 = static_cast<T>(u.l2);
  for (std::int64_t i = 0; i < u.n; ++i) held[i] = gradient[i] * factor;
  if (clipped) {
    for (std::int64_t i = 0; i < u.n; ++i) {
      held[i] = held[i] < -clip ? -clip : held[i] > clip ? clip : held[i];  // NaN stays
    }
  }
  if (u.l1 != 0) {
    for (std::int64_t i = 0; i < u.n; ++i) {
      const T p = parameter[i];
      held[i] += l1 * static_cast<T>((p > 0) - (p < 0));
    }
  }
  if (u.l2 != 0) {
    for (std::int64_t i = 0; i < u.n; ++i) held[i] += l2 * parameter[i];
  }
  return held;
}

// A running average; 1 - keep is rounded once, as keep = 0.999 leaves it few digits in float32.
template <class T>
void average(std::int64_t n, T* __restrict mean, const T* value, double keep) {
  const T old = static_cast<T>(keep), fresh = static_cast<T>(1 - keep);
  for (std::int64_t i = 0; i < n; ++i) mean[i] = mean[i] * old + value[i] * fresh;
}

template <class T>
void average_square(std::int64_t n, T* __restrict mean, const T* value, double keep) {
  const T old = static_cast<T>(keep), fresh = static_cast<T>(1 - keep);
  for (std::int64_t i = 0; i < n; ++i) mean[i] = mean[i] * old + value[i] * value[i] * fresh;
}

template <class T>
void sgd(const Update<T>& update, T* velocity, double momentum, bool nesterov) {
  T held[update_block];
  const T* const g = applied(update, held);
  const T rate = static_cast<T>(update.rate), m = static_cast<T>(momentum);
  T* __restrict p = update.parameter;
  T* __restrict v = velocity;
  const std::int64_t n = update.n;
  if (!v) {
    for (std::int64_t i = 0; i < n; ++i) p[i] -= g[i] * rate;
    return;
  }
  for (std::int64_t i = 0; i < n; ++i) v[i] = v[i] * m + g[i];
  if (nesterov) {
    for (std::int64_t i = 0; i < n; ++i) p[i] -= (g[i] + v[i] * m) * rate;
  } else {
    for (std::int64_t i = 0; i < n; ++i) p[i] -= v[i] * rate;
  }
}

template <class T>
void rmsprop(const Update<T>& update, T* square, T* mean, T* velocity, double alpha, double eps,
             double momentum) {
  T held[update_block], step[update_block];
  const T* const g = applied(update, held);
  const T rate = static_cast<T>(update.rate), m = static_cast<T>(momentum);
  const T least = static_cast<T>(eps);
  T* __restrict p = update.parameter;
  const std::int64_t n = update.n;
  average_square(n, square, g, alpha);
  if (mean) {
    average(n, mean, g, alpha);
    for (std::int64_t i = 0; i < n; ++i) {
      const T rest = square[i] - mean[i] * mean[i];
      step[i] = rest < 0 ? T(0) : rest;  // which rounding can leave below 0
    }
  } else {
    for (std::int64_t i = 0; i < n; ++i) step[i] = square[i];
  }
  for (std::int64_t i = 0; i < n; ++i) step[i] = g[i] / (square_root(step[i]) + least);
  if (velocity) {
    T* __restrict v = velocity;
    for (std::int64_t i = 0; i < n; ++i) step[i] = v[i] = v[i] * m + step[i];
  }
  for (std::int64_t i = 0; i < n; ++i) p[i] -= step[i] * rate;
}

template <class T>
void adam(const Update<T>& update, T* mean, T* square, T* largest, double keep, double beta1, double beta2,
          double eps, double bias1, double bias2) {
  T held[update_block];
  const T* const g = applied(update, held);
  const T kept = static_cast<T>(keep);
  const T least = static_cast<T>(eps), scale = static_cast<T>(1 / square_root(bias2));
  const T rate = static_cast<T>(update.rate / bias1);
  T* __restrict p = update.parameter;
  const std::int64_t n = update.n;
  if (keep != 1) {
    for (std::int64_t i = 0; i < n; ++i) p[i] *= kept;
  }
  average(n, mean, g, beta1);
  average_square(n, square, g, beta2);
  const T* s = square;
  if (largest) {
    T* __restrict most = largest;
    for (std::int64_t i = 0; i < n; ++i) {
      most[i] = most[i] < square[i] || square[i] != square[i] ? square[i] : most[i];
    }
    s = most;
  }
  for (std::int64_t i = 0; i < n; ++i) p[i] -= mean[i] / (square_root(s[i]) * scale + least) * rate;
}

template <class T>
double sum_of_squares(const T* x, std::int64_t n) {
  double part[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) {
      const double value = static_cast<double>(x[i + j]);
      part[j] += value * value;
    }
  }
  double sum = 0;
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  for (const double value : part) sum += value;
  return sum;
}

}  // namespace fastrnn::FASTRNN_TARGET
