#include "update.h"

#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "parallel.h"
#include "partition.h"

namespace fastrnn {
namespace {

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

// work(update of a block, slot...), a slot being an array beside the parameter, or none.
template <class T, class Work, class... Slots>
void for_updates(const Update<T>& update, const Work& work, Slots... slots) {
  for_blocks(update.n, update_block, [&](std::int64_t first, std::int64_t count) {
    Update<T> part = update;
    part.n = count;
    part.parameter += first;
    part.gradient += first;
    work(part, (slots ? slots + first : nullptr)...);
  });
}

}  // namespace

template <class T>
void sgd(const Update<T>& update, T* velocity, double momentum, bool nesterov) {
  const auto kernel = kernel_table().of<T>().sgd;
  for_updates(update, [&](const Update<T>& part, T* v) { kernel(part, v, momentum, nesterov); }, velocity);
}

template <class T>
void rmsprop(const Update<T>& update, T* square, T* mean, T* velocity, double alpha, double eps,
             double momentum) {
  const auto kernel = kernel_table().of<T>().rmsprop;
  for_updates(
      update, [&](const Update<T>& part, T* s, T* m, T* v) { kernel(part, s, m, v, alpha, eps, momentum); },
      square, mean, velocity);
}

template <class T>
void adam(const Update<T>& update, T* mean, T* square, T* largest, double keep, double beta1, double beta2,
          double eps, double bias1, double bias2) {
  const auto kernel = kernel_table().of<T>().adam;
  for_updates(
      update,
      [&](const Update<T>& part, T* m, T* s, T* most) {
        kernel(part, m, s, most, keep, beta1, beta2, eps, bias1, bias2);
      },
      mean, square, largest);
}

template <class T>
double sum_of_squares(std::int64_t n, const T* x) {
  const auto kernel = kernel_table().of<T>().sum_of_squares;
  std::vector<double> sums(static_cast<std::size_t>((n + norm_block - 1) / norm_block));
  for_blocks(n, norm_block, [&](std::int64_t first, std::int64_t count) {
    sums[static_cast<std::size_t>(first / norm_block)] = kernel(x + first, count);
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
