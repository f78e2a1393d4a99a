// What an optimizer does to the elements of a parameter: each on its own, so no bit depends on threads.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace fastrnn {

// p -= rate·u with u = g, or, where there is a velocity, v = momentum·v + g and u = v, or
// u = g + momentum·v with Nesterov's.
template <class T>
void sgd(const Update<T>& update, T* velocity, double momentum, bool nesterov);

// s = alpha·s + (1 - alpha)·g², likewise the mean of g, if wanted, whose square s is lowered by; then
// u = g / (sqrt(s) + eps), or, where there is a velocity, v = momentum·v + u and u = v; p -= rate·u.
template <class T>
void rmsprop(const Update<T>& update, T* square, T* mean, T* velocity, double alpha, double eps,
             double momentum);

// p *= keep; m and s as above, of beta1 and beta2, or the largest s so far, if wanted;
// p -= rate / bias1·m / (sqrt(s) / sqrt(bias2) + eps).
template <class T>
void adam(const Update<T>& update, T* mean, T* square, T* largest, double keep, double beta1, double beta2,
          double eps, double bias1, double bias2);

// In float64, in blocks that are added in their order.
template <class T>
double sum_of_squares(std::int64_t n, const T* x);

}  // namespace fastrnn
