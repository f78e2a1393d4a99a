// Where a step's time goes, one kernel at a time on one core: the tile products, the cell math, the
// barrier. Prints the percentage of the FMA peak measured around each line, because a core's speed drifts.
//
//   cmake --preset release && cmake --build --preset release && build/release/bench/microbenchmarks
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "dispatch.h"
#include "parallel.h"
#include "roof.h"
#include "storage.h"

using namespace fastrnn;

namespace {

using Clock = std::chrono::steady_clock;

// Median seconds of one call.
template <class Work>
double seconds_of(const Work& work) {
  work();
  std::vector<double> samples;
  for (double total = 0; total < 0.1 || samples.size() < 5; total += samples.back()) {
    const auto start = Clock::now();
    work();
    samples.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  std::nth_element(samples.begin(), samples.begin() + samples.size() / 2, samples.end());
  return samples[samples.size() / 2];
}

void report(const char* name, std::int64_t rows, std::int64_t width, double flops, double seconds) {
  const double peak = fma_peak<float>(1, 0.02);
  std::printf("%-22s rows %4lld  width %5lld  %9.2f us  %5.1f %% of peak\n", name,
              static_cast<long long>(rows), static_cast<long long>(width), seconds * 1e6,
              100 * flops / seconds / peak);
}

// One slice of an LSTM layer: `units` hidden units of a network of width `width`.
void lstm_slice(std::int64_t rows, std::int64_t width, std::int64_t units) {
  const Kernels<float>& kernels = kernel_table().of<float>();
  const std::int64_t gates = 4, stride = width + kernels.lanes;
  Arena arena;
  const auto lay_out = [&](Arena& a, float*& weight, float*& bias, float*& slots, float*& h, float*& c,
                           float*& result, float*& y) {
    weight = a.take<float>(units * gates * width);
    bias = a.take<float>(units * gates);
    slots = a.take<float>(rows * units * gates);
    h = a.take<float>(rows * stride);
    c = a.take<float>(rows * units);
    result = a.take<float>(rows * stride);
    y = a.take<float>(rows * width);
  };
  float *weight, *bias, *slots, *h, *c, *result, *y;
  lay_out(arena, weight, bias, slots, h, c, result, y);
  Storage storage;
  const std::size_t bytes = arena.used();
  auto* base = static_cast<float*>(storage.reserve(bytes));
  std::fill_n(base, bytes / sizeof(float), 0.01f);
  Arena real(base);
  lay_out(real, weight, bias, slots, h, c, result, y);

  std::vector<const float*> x_rows;
  std::vector<float*> y_rows;
  for (std::int64_t b = 0; b < rows; ++b) {
    x_rows.push_back(h + b * stride);
    y_rows.push_back(y + b * width);
  }
  const double flops = 2.0 * static_cast<double>(rows * units * gates * width);

  InputArguments<float> input{};
  input.x = x_rows.data();
  input.rows = rows;
  input.panels = units / kernels.lanes;
  input.columns = width;
  input.weight = weight;
  input.bias = bias;
  std::vector<float*> slot_rows;
  for (std::int64_t row = 0; row < rows; ++row) slot_rows.push_back(slots + row * units * gates);
  input.slots = slot_rows.data();
  input.slots_per_unit = static_cast<int>(gates);
  report("input projection", rows, width, flops, seconds_of([&] { kernels.input[4](input); }));

  StepArguments<float> step{};
  step.rows = rows;
  step.panels = input.panels;
  step.columns = width;
  step.units = units;
  step.operand = h;
  step.operand_stride = stride;
  step.weight = weight;
  step.slots = slots;
  step.slots_stride = units * gates;
  step.slots_per_unit = static_cast<int>(gates);
  step.c = c;
  step.c_stride = units;
  step.h_previous = h;
  step.h_stride = stride;
  step.result = result;
  step.result_stride = stride;
  step.y = y_rows.data();
  const auto lstm = kernels.step[static_cast<int>(StepPhase::lstm)];
  report("LSTM step", rows, width, flops, seconds_of([&] { lstm(step); }));
  step.columns = 0;
  const double cell = seconds_of([&] { lstm(step); });
  std::printf("%-22s rows %4lld  units %5lld  %9.2f us  %5.1f ns per vector\n", "LSTM cell math",
              static_cast<long long>(rows), static_cast<long long>(units), cell * 1e6,
              cell * 1e9 / static_cast<double>(rows * units / kernels.lanes));
}

void barrier(int threads) {
  constexpr int times = 100000;
  Barrier meeting(threads);
  Team team(threads, 1.0);
  if (team.size() < threads) return;
  const auto start = Clock::now();
  team.run([&](int thread) {
    for (int i = 0; i < times; ++i) meeting.wait(thread);
  });
  const double took = std::chrono::duration<double>(Clock::now() - start).count();
  std::printf("barrier of %d threads    %.0f ns\n", threads, took / times * 1e9);
}

void launch(int threads) {
  const double took = seconds_of([&] { Team(threads, 1.0).run([](int) {}); });
  std::printf("region of %d threads     %.2f us, one right after the other\n", threads, took * 1e6);
}

}  // namespace

int main() {
  std::printf("instructions %s\n", kernel_table().isa);
  for (const std::int64_t width : {64, 128, 256, 512, 1024}) {
    for (const std::int64_t rows : {1, 8, 32, 128}) lstm_slice(rows, width, width / 2);
  }
  for (int threads = 2; threads <= num_threads(); threads *= 2) {
    barrier(threads);
    launch(threads);
  }
}
