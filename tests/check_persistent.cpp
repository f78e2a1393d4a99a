// The persistent kernels without a GPU: the planner as a table; fragments against their definition; and the
// kernels on emulated blocks, forward and backward, against a plain loop over cells.h in double precision and
// bit for bit against a single block.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "group_emulated.h"
#include "persistent_backward.h"
#include "persistent_forward.h"
#include "planner.h"
#include "steps_tape.h"

using namespace fastrnn;
using namespace fastrnn::FASTRNN_TARGET;

namespace {

int failures = 0;
long checks = 0;

void expect(bool good, const std::string& what) {
  ++checks;
  if (good) return;
  if (++failures <= 40) std::printf("FAILED: %s\n", what.c_str());
}

std::mt19937 generator(9);
int below(int n) { return static_cast<int>(generator() % static_cast<unsigned>(n)); }
float uniform(float limit) { return std::uniform_real_distribution<float>(-limit, limit)(generator); }

// ---- planner ------------------------------------------------------------------------------------------

struct Row {
  const char* device;
  CellKind cell;
  StorageKind kind;
  std::int64_t steps, batch, hidden, directions;
  Policy policy;
  bool backward = false;
};

// What the policies are for, and the limits of each device.
const Row table[] = {
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 1, 64, 1, Policy::block},
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 8, 96, 1, Policy::block},
    {"H200", CellKind::lstm, StorageKind::fp16, 100, 1, 128, 2, Policy::cluster},
    {"H200", CellKind::gru, StorageKind::bf16, 100, 32, 128, 1, Policy::block},
    {"H200", CellKind::rnn_tanh, StorageKind::bf16, 100, 32, 128, 1, Policy::block},
    {"H200", CellKind::lstm, StorageKind::tf32, 100, 8, 96, 1, Policy::cluster},
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 8, 192, 1, Policy::cluster},
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 16, 256, 1, Policy::cluster},
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 64, 256, 1, Policy::cluster},
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 16, 512, 1, Policy::cluster},
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 1, 512, 2, Policy::cluster},
    {"H200", CellKind::gru, StorageKind::fp16, 100, 32, 512, 1, Policy::cluster},
    {"H200", CellKind::lstm, StorageKind::tf32, 100, 8, 256, 1, Policy::cluster},
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 16, 768, 1, Policy::grid},
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 16, 1024, 1, Policy::grid},
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 1, 1024, 2, Policy::grid},
    {"H200", CellKind::gru, StorageKind::bf16, 100, 8, 1024, 1, Policy::grid},
    {"H100", CellKind::lstm, StorageKind::bf16, 100, 16, 1024, 1, Policy::grid},
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 16, 1024, 1, Policy::grid, true},
    {"H200", CellKind::lstm, StorageKind::tf32, 100, 16, 768, 1, Policy::grid, true},
    // A block alone would read half of its weights from shared memory in every step.
    {"H200", CellKind::lstm, StorageKind::tf32, 100, 16, 128, 1, Policy::cluster},
    {"H200", CellKind::lstm, StorageKind::tf32, 100, 16, 64, 1, Policy::block},
    // Backward exchanges the gradients of all gates: a cluster has room for one buffer of them, and what a
    // grid reads from L2 takes the longer, the more rows there are.
    {"H200", CellKind::lstm, StorageKind::tf32, 100, 16, 512, 1, Policy::cluster, true},
    {"H200", CellKind::lstm, StorageKind::tf32, 100, 64, 512, 2, Policy::cluster, true},
    {"H200", CellKind::lstm, StorageKind::tf32, 100, 16, 1024, 1, Policy::grid, true},
    {"H200", CellKind::lstm, StorageKind::tf32, 100, 64, 1024, 1, Policy::steps, true},
    // In bands of rows.
    {"H200", CellKind::lstm, StorageKind::tf32, 100, 32, 1024, 2, Policy::grid},
    {"H200", CellKind::lstm, StorageKind::tf32, 100, 64, 1024, 2, Policy::steps},
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 64, 1024, 2, Policy::grid},
    {"B200", CellKind::lstm, StorageKind::bf16, 100, 16, 512, 1, Policy::cluster},
    {"B200", CellKind::lstm, StorageKind::bf16, 100, 16, 1024, 1, Policy::grid},
    // No clusters: small ones in a block, the others over the grid, as far as shared memory goes.
    {"A100", CellKind::lstm, StorageKind::bf16, 100, 8, 64, 1, Policy::block},
    {"A100", CellKind::lstm, StorageKind::bf16, 100, 8, 256, 1, Policy::grid},
    {"A100", CellKind::lstm, StorageKind::bf16, 100, 8, 512, 1, Policy::grid},
    {"L4", CellKind::lstm, StorageKind::bf16, 100, 8, 64, 1, Policy::block},
    {"RTX 4090", CellKind::lstm, StorageKind::bf16, 100, 8, 256, 1, Policy::grid},
    {"RTX 5090", CellKind::lstm, StorageKind::bf16, 100, 8, 64, 1, Policy::block},
    {"RTX 5090", CellKind::lstm, StorageKind::bf16, 100, 8, 128, 1, Policy::cluster},
    {"RTX 5090", CellKind::lstm, StorageKind::bf16, 100, 8, 192, 1, Policy::cluster},
    // Too large, too exact, too short, or with what only Steps does.
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 16, 4096, 1, Policy::steps},
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 4096, 1024, 1, Policy::steps},
    {"H200", CellKind::lstm, StorageKind::float64, 100, 8, 64, 1, Policy::steps},
    {"H200", CellKind::lstm, StorageKind::bf16, 1, 8, 64, 1, Policy::steps},
    {"H200", CellKind::lstm, StorageKind::bf16, 100, 0, 64, 1, Policy::steps},
    {"H200", CellKind::gru_reset_before, StorageKind::bf16, 100, 8, 64, 1, Policy::steps},
    {"H200", CellKind::lstm_peephole, StorageKind::bf16, 100, 8, 64, 1, Policy::steps},
    {"H200", CellKind::lstm, StorageKind::float32, 100, 8, 64, 1, Policy::block},
    {"H200", CellKind::lstm, StorageKind::float32, 100, 8, 256, 1, Policy::cluster},
};

std::string text_of(const Row& row) {
  return std::string(row.device) + " " + name_of(row.cell) + " " + name_of(row.kind) + " T" +
         std::to_string(row.steps) + " B" + std::to_string(row.batch) + " H" + std::to_string(row.hidden) +
         " D" + std::to_string(row.directions) + (row.backward ? " backward" : "");
}

void check_limits(const DeviceProperties& device, const Problem& problem, const std::string& what) {
  const Plan plan = plan_layer(device, problem);
  expect(!plan.why.empty(), what + ": no reason given");
  if (plan.policy == Policy::steps) return;
  const PersistentShape& shape = plan.shape;
  expect(plan.shared_bytes + persistent_static_bytes <= device.shared_per_block, what + ": shared memory");
  expect(plan.threads <= 512 && plan.threads % 32 == 0, what + ": threads");
  expect(plan.register_weight_bytes / plan.threads <= 4 * (plan.threads <= 256 ? 128 : 64),
         what + ": registers");
  expect(plan.register_weight_bytes + plan.shared_weight_bytes == shape.jobs() * shape.job_bytes(),
         what + ": weights");
  expect(shape.backward == problem.backward, what + ": the other pass");
  expect(shape.items() <= items_at_depth(shape.gates, shape.parts, shape.depth) * shape.threads(),
         what + ": items");
  expect(shape.panels_of(shape.ranks - 1) > 0, what + ": an idle block");
  expect(std::int64_t{plan.units_per_block} * shape.ranks >= problem.hidden, what + ": units");
  expect(std::int64_t{plan.row_groups} * plan.batch_tile >= problem.batch, what + ": rows");
  expect(shape.depth == depth_of(problem.hidden, shape.gates, shape.step, shape.parts), what + ": depth");
  if (plan.policy == Policy::block) expect(shape.ranks == 1, what + ": one block");
  if (plan.policy == Policy::cluster) {
    expect(device.major >= 9 && shape.ranks <= device.largest_cluster, what + ": cluster");
    expect(shape.buffers == 1 || shape.buffers == 2, what + ": buffers");
  }
  if (plan.policy == Policy::grid) {
    expect(plan.blocks(problem.directions) <= device.multiprocessors, what + ": all blocks at once");
    expect(shape.buffers == 0, what + ": buffers in global memory");
  }
}

void check_planner(bool verbose) {
  for (const Row& row : table) {
    Problem problem{row.cell,   row.kind,       row.steps, row.batch,   row.hidden,
                    row.hidden, row.directions, false,     row.backward};
    const Plan plan = plan_layer(device_named(row.device), problem);
    expect(plan.policy == row.policy,
           text_of(row) + ": expected " + name_of(row.policy) + ", got " + plan.why);
    if (verbose) {
      std::printf("%-44s %s; %d threads, shared %lld (weights %lld), registers' weights %lld\n",
                  text_of(row).c_str(), plan.why.c_str(), plan.threads,
                  static_cast<long long>(plan.shared_bytes), static_cast<long long>(plan.shared_weight_bytes),
                  static_cast<long long>(plan.register_weight_bytes));
    }
    problem.has_other_options = true;
    expect(plan_layer(device_named(row.device), problem).policy == Policy::steps, "options: steps");
    problem.has_other_options = false;
    problem.state = row.hidden / 2;
    expect(plan_layer(device_named(row.device), problem).policy == Policy::steps, "projection: steps");
  }
  for (const DeviceProperties& device : known_devices()) {
    for (const CellKind cell : {CellKind::rnn_relu, CellKind::lstm, CellKind::lstm_coupled, CellKind::gru}) {
      for (int kind = 0; kind < static_cast<int>(StorageKind::count); ++kind) {
        for (const int hidden : {1, 16, 50, 64, 100, 128, 200, 256, 300, 512, 700, 768, 1024, 1500, 2048}) {
          for (const int batch : {1, 7, 8, 16, 33, 64, 128, 1000}) {
            for (const int directions : {1, 2}) {
              for (const bool backward : {false, true}) {
                const Problem problem{
                    cell,    static_cast<StorageKind>(kind), 50, batch, hidden, hidden, directions, false,
                    backward};
                check_limits(device, problem,
                             text_of({device.name, cell, problem.kind, 50, batch, hidden, directions,
                                      Policy::steps, backward}));
              }
            }
          }
        }
      }
    }
  }
  bool thrown = false;
  try {
    device_named("H300");
  } catch (const std::invalid_argument&) {
    thrown = true;
  }
  expect(thrown, "unknown device");
}

// ---- fragments ----------------------------------------------------------------------------------------

// The other formats in double precision, by rounding to a multiple of the last place.
double rounded(double x, int mantissa, int lowest, bool away) {
  if (x == 0) return x;
  int exponent;
  std::frexp(x, &exponent);
  const double last = std::ldexp(1.0, std::max(exponent - 1, lowest) - mantissa);
  const double units = x / last;
  return (away ? std::round(units) : std::nearbyint(units)) * last;
}

void check_numbers() {
  for (int bits = 0; bits < 65536; ++bits) {
    const auto b = static_cast<std::uint16_t>(bits);
    const float half = from_half(b), brain = from_bfloat16(b);
    expect(std::isnan(half) ? std::isnan(from_half(half_bits(half))) : half_bits(half) == b,
           "fp16 there and back");
    expect(std::isnan(brain) ? std::isnan(from_bfloat16(bfloat16_bits(brain))) : bfloat16_bits(brain) == b,
           "bf16 there and back");
  }
  for (int i = 0; i < 200000; ++i) {
    const float x = std::ldexp(uniform(2), below(44) - 28);
    const double half = std::fabs(x) >= 65520 ? std::copysign(INFINITY, x) : rounded(x, 10, -14, false);
    expect(from_half(half_bits(x)) == half, "rounding to fp16 of " + std::to_string(x));
    expect(from_bfloat16(bfloat16_bits(x)) == rounded(x, 7, -126, false), "rounding to bf16");
    expect(bits_as<float>(tf32_bits(x)) == rounded(x, 10, -126, true), "rounding to tf32");
  }
}

// Every element in one place, and where the PTX ISA says: spelled out for the first and last lanes.
template <class Op>
void check_layout() {
  int left[panel_rows][Op::step] = {}, right[Op::step][tile_columns] = {},
      product[panel_rows][tile_columns] = {};
  for (int lane = 0; lane < warp_lanes; ++lane) {
    for (int i = 0; i < Op::left_elements; ++i) ++left[Op::left(lane, i).row][Op::left(lane, i).column];
    for (int i = 0; i < Op::right_elements; ++i) {
      const Position p = Op::right(lane, i);
      ++right[p.row][p.column];
      expect(Op::right_lane(p) == lane && Op::right_element(p) == i, "inverse of the right layout");
    }
    for (int i = 0; i < 4; ++i) ++product[product_position(lane, i).row][product_position(lane, i).column];
  }
  for (const auto& row : left) expect(std::all_of(row, row + Op::step, [](int n) { return n == 1; }), "left");
  for (const auto& row : right) {
    expect(std::all_of(row, row + tile_columns, [](int n) { return n == 1; }), "right");
  }
  for (const auto& row : product) {
    expect(std::all_of(row, row + tile_columns, [](int n) { return n == 1; }), "product");
  }
}

void check_places() {
  using Wide = FragmentLayout<16>;
  using Narrow = FragmentLayout<8>;
  const auto same = [](Position p, int row, int column) { return p.row == row && p.column == column; };
  // Lane 5 is group 1, thread 1 of it.
  const int wide[8][2] = {{1, 2}, {1, 3}, {9, 2}, {9, 3}, {1, 10}, {1, 11}, {9, 10}, {9, 11}};
  for (int i = 0; i < 8; ++i) expect(same(Wide::left(5, i), wide[i][0], wide[i][1]), "m16n8k16 left");
  const int deep[4] = {2, 3, 10, 11};
  for (int i = 0; i < 4; ++i) expect(same(Wide::right(5, i), deep[i], 1), "m16n8k16 right");
  const int narrow[4][2] = {{1, 1}, {9, 1}, {1, 5}, {9, 5}};
  for (int i = 0; i < 4; ++i) expect(same(Narrow::left(5, i), narrow[i][0], narrow[i][1]), "m16n8k8 left");
  expect(same(Narrow::right(5, 0), 1, 1) && same(Narrow::right(5, 1), 5, 1), "m16n8k8 right");
  const int product[4][2] = {{1, 2}, {1, 3}, {9, 2}, {9, 3}};
  for (int i = 0; i < 4; ++i) expect(same(product_position(5, i), product[i][0], product[i][1]), "product");
}

// What a float32 is in three products: all but low times low.
float product_of_parts(float a, float b) {
  std::uint32_t a_high, a_low, b_high, b_low;
  split_tf32(a, a_high, a_low);
  split_tf32(b, b_high, b_low);
  const auto value = [](std::uint32_t bits) { return bits_as<float>(bits); };
  return value(a_low) * value(b_high) + value(a_high) * value(b_low) + value(a_high) * value(b_high);
}

void check_parts() {
  const float infinity = INFINITY, largest = 3.402e38f;     // of TF32, infinity
  for (const float weight : {1.0f, -0.5f, 0.3f, -1e-3f}) {  // the first two have no low part
    for (const float x : {infinity, -infinity}) {
      expect(product_of_parts(weight, x) == weight * x, "an infinite state");
      expect(product_of_parts(x, weight) == weight * x, "an infinite weight");
    }
    for (const float x : {largest, -largest, 1e38f, 1.0f, 1e-20f}) {
      const float error = std::fabs(product_of_parts(weight, x) - weight * x);
      // The largest is cut and not rounded, lest it become infinite.
      const float bound = std::fabs(x) == largest ? 0x1p-19f : 0x1p-20f;
      expect(error <= std::fabs(weight * x) * bound, "parts of a finite number");
    }
    expect(std::isnan(product_of_parts(weight, NAN)), "NaN");
  }
  for (const float x : {0.0f, infinity}) {  // never a number where there is none, and none that is wrong
    expect(std::isnan(product_of_parts(x, infinity)), "infinity times what has no finite part");
  }
}

template <Precision precision>
void check_multiply(double unit) {
  using Op = Operand<precision>;
  check_layout<Op>();
  float a[panel_rows][Op::step], b[Op::step][tile_columns], c[panel_rows][tile_columns];
  for (auto& row : a)
    for (float& x : row) x = uniform(1);
  for (auto& row : b)
    for (float& x : row) x = uniform(1);
  for (auto& row : c)
    for (float& x : row) x = uniform(1);
  alignas(16) char memory[right_bytes] = {};
  for (int k = 0; k < Op::step; ++k) {
    for (int n = 0; n < tile_columns; ++n) put_right<Op>(memory, k, n, b[k][n]);
  }
  Lanes<Left<Op>> left;
  Lanes<Right<Op>> right;
  Lanes<Accumulator> sum;
  for (int lane = 0; lane < warp_lanes; ++lane) {
    left[lane] = left_fragment<Op>(lane, [&](int row, int column) { return a[row][column]; });
    right[lane] = right_of<Op>(right_words(memory, lane));
    for (int i = 0; i < Op::left_elements; ++i) {
      double value = 0;
      for (int part = 0; part < Op::parts; ++part) value += element_of(left[lane], i, part);
      const Position p = Op::left(lane, i);
      expect(std::fabs(value - a[p.row][p.column]) <= unit, "left there and back");
    }
    for (int i = 0; i < 4; ++i) {
      const Position p = product_position(lane, i);
      sum[lane].value[i] = c[p.row][p.column];
    }
  }
  multiply<precision>(sum, left, right);
  for (int lane = 0; lane < warp_lanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const Position p = product_position(lane, i);
      double plain = c[p.row][p.column], exact = plain;
      for (int k = 0; k < Op::step; ++k) {
        const auto operand = [](float x) {
          return Op::parts == 2 ? static_cast<double>(x) : Op::value(Op::rounded(x), 0);
        };
        plain += operand(a[p.row][k]) * operand(b[k][p.column]);
        exact += static_cast<double>(a[p.row][k]) * b[k][p.column];
      }
      expect(std::fabs(sum[lane].value[i] - plain) <= 4e-6, "product of a warp, rounded operands");
      expect(std::fabs(sum[lane].value[i] - exact) <= 2 * Op::step * unit + 4e-6, "product of a warp");
    }
  }
}

void check_fragments() {
  check_parts();
  check_numbers();
  check_places();
  for (int i = 0; i < 20; ++i) {
    check_multiply<Precision::bf16>(0x1p-9);
    check_multiply<Precision::fp16>(0x1p-12);
    check_multiply<Precision::tf32>(0x1p-11);
    check_multiply<Precision::float32>(0x1p-22);
  }
}

// ---- kernels ------------------------------------------------------------------------------------------

struct Size {
  int steps, batch, hidden, directions;
  bool lengths, resets, state, gradients;  // h0 and c0; of the state and of all steps
};

// One layer. Numbers are exact in the type that stores them.
template <class T>
struct Inputs {
  Size size;
  int gates, slots;
  std::vector<T> weight[2], bias_ih[2], bias_hh[2], h0[2], c0[2],
      projected[2];  // projected: (T, B, slots * H)
  std::vector<T> grad_y, grad_h_all[2], grad_c_all[2], grad_hn[2], grad_cn[2];
  std::vector<std::int64_t> lengths;
  std::vector<char> resets;

  Frame frame() const {
    Frame frame;
    frame.steps = size.steps;
    frame.batch = size.batch;
    frame.hidden = frame.state = size.hidden;
    frame.gates = gates;
    frame.slots = slots;
    frame.lengths = size.lengths ? lengths.data() : nullptr;
    frame.resets = size.resets ? resets.data() : nullptr;
    return frame;
  }
};

template <class T>
std::vector<T> random_array(std::int64_t n, float limit) {
  std::vector<T> values(static_cast<std::size_t>(n));
  for (T& value : values) value = static_cast<T>(uniform(limit));
  return values;
}

template <class T>
Inputs<T> random_inputs(const Size& size, int gates, int slots) {
  Inputs<T> in;
  in.size = size;
  in.gates = gates;
  in.slots = slots;
  const std::int64_t H = size.hidden, rows = std::int64_t{1} * size.steps * size.batch;
  for (int b = 0; b < size.batch; ++b) in.lengths.push_back(below(size.steps + 1));
  for (int i = 0; i < rows; ++i) in.resets.push_back(below(4) == 0);
  for (int d = 0; d < size.directions; ++d) {
    in.weight[d] = random_array<T>(gates * H * H, 1 / std::sqrt(static_cast<float>(H)));
    in.bias_ih[d] = random_array<T>(gates * H, 0.5f);
    in.bias_hh[d] = random_array<T>(gates * H, 0.5f);
    for (auto* const state : {&in.h0[d], &in.c0[d], &in.grad_hn[d], &in.grad_cn[d]}) {
      *state = random_array<T>(size.batch * H, 0.7f);
    }
    for (auto* const all : {&in.grad_h_all[d], &in.grad_c_all[d]}) *all = random_array<T>(rows * H, 0.5f);
    in.projected[d] = random_array<T>(rows * slots * H, 1.0f);
  }
  in.grad_y = random_array<T>(rows * size.directions * H, 0.7f);
  // What no step reads.
  for (std::int64_t row = 0; size.lengths && row < rows; ++row) {
    if (row / size.batch < in.lengths[static_cast<std::size_t>(row % size.batch)]) continue;
    const T nan = static_cast<T>(NAN);
    for (int d = 0; d < size.directions; ++d) {
      std::fill_n(in.projected[d].begin() + row * slots * H, slots * H, nan);
      std::fill_n(in.grad_h_all[d].begin() + row * H, H, nan);
      std::fill_n(in.grad_c_all[d].begin() + row * H, H, nan);
    }
    std::fill_n(in.grad_y.begin() + row * size.directions * H, size.directions * H, nan);
  }
  return in;
}

// In the order of `names`; float, whatever T is.
template <class V>
struct Outputs {
  std::vector<V> y, hn[2], cn[2], h_all[2], c_all[2], gates[2], grad_slots[2], grad_h0[2], grad_c0[2];

  std::vector<std::pair<const char*, const std::vector<V>*>> all(int directions, bool cell) const {
    std::vector<std::pair<const char*, const std::vector<V>*>> list = {{"y", &y}};
    for (int d = 0; d < directions; ++d) {
      list.insert(list.end(), {{"hn", &hn[d]},
                               {"h_all", &h_all[d]},
                               {"gates", &gates[d]},
                               {"grad_slots", &grad_slots[d]},
                               {"grad_h0", &grad_h0[d]}});
      if (cell) list.insert(list.end(), {{"cn", &cn[d]}, {"c_all", &c_all[d]}, {"grad_c0", &grad_c0[d]}});
    }
    return list;
  }
};

// The plain loop, row by row.
template <class Cell, class T>
class Reference {
 public:
  Reference(const Inputs<T>& in, double clip) : in_(in), H(in.size.hidden), clip_(clip) {}

  Outputs<double> run() {
    const Size& size = in_.size;
    const std::int64_t rows = std::int64_t{1} * size.steps * size.batch;
    const auto zeros = [](std::int64_t n) { return std::vector<double>(static_cast<std::size_t>(n)); };
    out_.y = zeros(rows * size.directions * H);
    for (int d = 0; d < size.directions; ++d) {
      for (auto* const state : {&out_.hn[d], &out_.cn[d], &out_.grad_h0[d], &out_.grad_c0[d]}) {
        *state = zeros(size.batch * H);
      }
      out_.h_all[d] = zeros(rows * H);
      out_.c_all[d] = zeros(rows * H);
      out_.gates[d] = zeros(rows * Cell::slots * H);
      out_.grad_slots[d] = zeros(rows * Cell::slots * H);
      for (int b = 0; b < size.batch; ++b) row(d, b);
    }
    return out_;
  }

 private:
  static double value(const std::vector<T>& from, std::int64_t at) {
    return static_cast<double>(static_cast<float>(from[static_cast<std::size_t>(at)]));
  }
  static LaneWeights<double> lane(double clip) { return {0, 0, 0, clip}; }

  void row(int d, int b) {
    const Size& size = in_.size;
    const std::int64_t B = size.batch;
    const int length = size.lengths ? static_cast<int>(in_.lengths[static_cast<std::size_t>(b)]) : size.steps;
    std::vector<double> h(H), c(H);
    for (int u = 0; u < H && size.state; ++u) {
      h[u] = value(in_.h0[d], b * H + u);
      c[u] = value(in_.c0[d], b * H + u);
    }
    std::vector<std::vector<double>> h_before, c_before;
    std::vector<bool> cut;
    for (int s = 0; s < length; ++s) {
      const int t = d ? length - 1 - s : s;
      // Of two adjacent times a reset at the later one cuts.
      const int later = d ? t + 1 : t;
      cut.push_back(size.resets && later < length && in_.resets[static_cast<std::size_t>(later * B + b)]);
      if (cut.back()) {
        std::fill(h.begin(), h.end(), 0.0);
        std::fill(c.begin(), c.end(), 0.0);
      }
      h_before.push_back(h);
      c_before.push_back(c);
      const std::int64_t at = t * B + b;
      std::vector<double> h_next(H);
      for (int u = 0; u < H; ++u) {
        double slot[Cell::slots];
        for (int g = 0; g < Cell::gates; ++g) {
          const double x =
              value(in_.projected[d], (at * Cell::slots + g) * H + u) + value(in_.bias_ih[d], g * H + u);
          double product = value(in_.bias_hh[d], g * H + u);
          for (int k = 0; k < H; ++k) product += value(in_.weight[d], (g * H + u) * H + k) * h[k];
          slot[g] = x + (g == Cell::separate ? 0 : product);
          if (g == Cell::separate) slot[Cell::slots - 1] = product;
        }
        State<double> state{h[u], c[u]};
        Cell::forward(slot, state, lane(clip_));
        h_next[u] = state.h;
        c[u] = state.c;
        for (int j = 0; j < Cell::slots; ++j) out_.gates[d][(at * Cell::slots + j) * H + u] = slot[j];
        out_.y[at * size.directions * H + d * H + u] = out_.h_all[d][at * H + u] = state.h;
        if (Cell::has_cell_state) out_.c_all[d][at * H + u] = state.c;
      }
      h = h_next;
    }
    for (int u = 0; u < H; ++u) {
      out_.hn[d][b * H + u] = h[u];
      if (Cell::has_cell_state) out_.cn[d][b * H + u] = c[u];
    }
    back(d, b, length, h_before, c_before, cut);
  }

  void back(int d, int b, int length, const std::vector<std::vector<double>>& h_before,
            const std::vector<std::vector<double>>& c_before, const std::vector<bool>& cut) {
    const Size& size = in_.size;
    const std::int64_t B = size.batch;
    std::vector<double> dh(H), dc(H);
    for (int u = 0; u < H && size.gradients; ++u) {
      dh[u] = value(in_.grad_hn[d], b * H + u);
      if (Cell::has_cell_state) dc[u] = value(in_.grad_cn[d], b * H + u);
    }
    for (int s = length - 1; s >= 0; --s) {
      const int t = d ? length - 1 - s : s;
      const std::int64_t at = t * B + b;
      std::vector<double> next(H);
      for (int u = 0; u < H; ++u) {
        double slot[Cell::slots];
        for (int j = 0; j < Cell::slots; ++j) slot[j] = out_.gates[d][(at * Cell::slots + j) * H + u];
        State<double> grad{dh[u] + value(in_.grad_y, at * size.directions * H + d * H + u), dc[u]};
        if (size.gradients) {
          grad.h += value(in_.grad_h_all[d], at * H + u);
          grad.c += value(in_.grad_c_all[d], at * H + u);
        }
        Cell::backward(slot, {h_before[s][u], c_before[s][u]}, grad, lane(clip_));
        dc[u] = Cell::has_cell_state ? grad.c : 0;
        if (Cell::passes_h) next[u] += grad.h;
        for (int j = 0; j < Cell::slots; ++j) out_.grad_slots[d][(at * Cell::slots + j) * H + u] = slot[j];
        for (int g = 0; g < Cell::gates; ++g) {
          for (int k = 0; k < H; ++k) {
            next[k] += value(in_.weight[d], (g * H + u) * H + k) * slot[Cell::slots - Cell::gates + g];
          }
        }
      }
      dh = next;
      if (cut[s]) {
        std::fill(dh.begin(), dh.end(), 0.0);
        std::fill(dc.begin(), dc.end(), 0.0);
      }
    }
    for (int u = 0; u < H; ++u) {
      out_.grad_h0[d][b * H + u] = dh[u];
      out_.grad_c0[d][b * H + u] = dc[u];
    }
  }

  const Inputs<T>& in_;
  const std::int64_t H;
  const double clip_;
  Outputs<double> out_;
};

struct Cut {
  Policy policy;
  int panels, tiles, warps;
  int ranges = 1;      // of steps, each with a launch of its own
  int band_tiles = 8;  // or fewer: as many as there are
  int buffers = 2;     // of a cluster
};

template <class Op>
PersistentShape shape_of(const Size& size, int gates, int depth, const Cut& cut) {
  PersistentShape shape;
  shape.hidden = size.hidden;
  shape.gates = gates;
  shape.step = Op::step;
  shape.parts = Op::parts;
  shape.depth = depth;
  shape.panels = std::min(cut.panels, shape.all_panels());
  if (cut.policy == Policy::block) shape.panels = shape.all_panels();
  shape.ranks = (shape.all_panels() + shape.panels - 1) / shape.panels;
  shape.tiles = cut.tiles;
  shape.warps = cut.warps;
  while (shape.items() > items_at_depth(gates, Op::parts, depth) * shape.threads()) ++shape.warps;
  shape.band_tiles = std::min(cut.band_tiles, cut.tiles);
  shape.buffers = cut.policy == Policy::cluster ? cut.buffers : cut.policy == Policy::block ? 1 : 0;
  return shape;
}

template <class T>
std::vector<float> as_float(const std::vector<T>& from) {
  std::vector<float> to(from.size());
  std::transform(from.begin(), from.end(), to.begin(), [](T x) { return static_cast<float>(x); });
  return to;
}

// Both passes on emulated blocks.
template <class Cell, Precision precision, int depth, class T>
class Emulation {
 public:
  Emulation(const Inputs<T>& in, const Cut& cut, float clip)
      : in_(in), size_(in.size), cut_(cut), clip_(clip) {}

  Outputs<float> run() {
    const std::int64_t rows = std::int64_t{1} * size_.steps * size_.batch, H = size_.hidden;
    const auto nan = [](std::int64_t n) {
      return std::vector<T>(static_cast<std::size_t>(n), static_cast<T>(NAN));
    };
    y_ = nan(rows * size_.directions * H);
    for (int d = 0; d < size_.directions; ++d) {
      slots_[d] = in_.projected[d];
      hn_[d] = nan(size_.batch * H);
      cn_[d] = nan(size_.batch * H);
      grad_h0_[d] = nan(size_.batch * H);
      grad_c0_[d] = nan(size_.batch * H);
      h_all_[d].assign(static_cast<std::size_t>(rows * H), T(0.0f));
      c_all_[d] = h_all_[d];
      h_[d] = nan((size_.steps + 1) * size_.batch * H);
      c_[d].assign(h_[d].size(), NAN);
    }
    forward();
    Outputs<float> out;
    out.y = as_float(y_);
    for (int d = 0; d < size_.directions; ++d) {
      out.hn[d] = as_float(hn_[d]);
      out.cn[d] = as_float(cn_[d]);
      out.h_all[d] = as_float(h_all_[d]);
      out.c_all[d] = as_float(c_all_[d]);
      out.gates[d] = as_float(slots_[d]);
      clear_padding(out.gates[d]);
    }
    backward();
    for (int d = 0; d < size_.directions; ++d) {
      out.grad_slots[d] = as_float(slots_[d]);
      out.grad_h0[d] = as_float(grad_h0_[d]);
      out.grad_c0[d] = as_float(grad_c0_[d]);
    }
    return out;
  }

 private:
  static const T* if_wanted(bool wanted, const std::vector<T>& array) {
    return wanted ? array.data() : nullptr;
  }

  // Slots past a row's length: whatever.
  void clear_padding(std::vector<float>& slots) const {
    const std::int64_t each = std::int64_t{Cell::slots} * size_.hidden;
    for (std::int64_t row = 0; size_.lengths && row < size_.steps * size_.batch; ++row) {
      if (row / size_.batch < in_.lengths[static_cast<std::size_t>(row % size_.batch)]) continue;
      std::fill_n(slots.begin() + row * each, each, 0.0f);
    }
  }

  void forward() {
    PersistentForwardCall<T> call;
    call.frame = in_.frame();
    call.clip = clip_;
    call.keep_slots = true;
    for (int d = 0; d < size_.directions; ++d) {
      PersistentForwardChain<T>& chain = call.chain[d];
      chain.weight_hh = in_.weight[d].data();
      chain.bias_ih = in_.bias_ih[d].data();
      chain.bias_hh = in_.bias_hh[d].data();
      chain.h0 = if_wanted(size_.state, in_.h0[d]);
      chain.c0 = if_wanted(size_.state, in_.c0[d]);
      chain.slots = slots_[d].data();
      chain.y = y_.data() + d * size_.hidden;
      chain.y_stride = std::int64_t{1} * size_.directions * size_.hidden;
      chain.hn = hn_[d].data();
      chain.cn = cn_[d].data();
      chain.h_all = h_all_[d].data();
      chain.c_all = c_all_[d].data();
      chain.h = h_[d].data();
      chain.c = c_[d].data();
    }
    const int ranges = std::min(cut_.ranges, size_.steps);
    const auto state = static_cast<std::size_t>(size_.batch * size_.hidden);
    std::vector<T> carried_h[2][2];  // two that take turns, of each direction
    std::vector<float> carried_c[2][2];
    for (int r = 0; r < ranges; ++r) {
      call.first_step = size_.steps * r / ranges;
      call.end_step = size_.steps * (r + 1) / ranges;
      for (int d = 0; d < size_.directions; ++d) {
        PersistentForwardChain<T>& chain = call.chain[d];
        chain.carried_h = r > 0 ? carried_h[r % 2][d].data() : nullptr;
        chain.carried_c = r > 0 ? carried_c[r % 2][d].data() : nullptr;
        std::vector<T>& left_h = carried_h[(r + 1) % 2][d];
        std::vector<float>& left_c = carried_c[(r + 1) % 2][d];
        left_h.assign(state, static_cast<T>(NAN));
        left_c.assign(state, NAN);
        chain.left_h = r + 1 < ranges ? left_h.data() : nullptr;
        chain.left_c = r + 1 < ranges ? left_c.data() : nullptr;
      }
      launch<PersistentForward<Cell, precision, depth, T, EmulatedGroup>>(call);
    }
  }

  void backward() {
    PersistentBackwardCall<T> call;
    call.frame = in_.frame();
    call.clip = clip_;
    for (int d = 0; d < size_.directions; ++d) {
      PersistentBackwardChain<T>& chain = call.chain[d];
      chain.weight_hh = in_.weight[d].data();
      chain.slots = slots_[d].data();
      chain.h = h_[d].data();
      chain.c = c_[d].data();
      chain.grad_y = in_.grad_y.data() + d * size_.hidden;
      chain.grad_y_stride = std::int64_t{1} * size_.directions * size_.hidden;
      chain.grad_h_all = if_wanted(size_.gradients, in_.grad_h_all[d]);
      chain.grad_c_all = if_wanted(size_.gradients, in_.grad_c_all[d]);
      chain.grad_hn = if_wanted(size_.gradients, in_.grad_hn[d]);
      chain.grad_cn = if_wanted(size_.gradients && Cell::has_cell_state, in_.grad_cn[d]);
      chain.grad_h0 = grad_h0_[d].data();
      chain.grad_c0 = grad_c0_[d].data();
    }
    launch<PersistentBackward<Cell, precision, depth, T, EmulatedGroup>>(call);
  }

  template <class Kernel, class Call>
  void launch(Call& call) {
    PersistentShape shape = shape_of<Operand<precision>>(size_, Cell::gates, depth, cut_);
    shape.backward = std::is_same_v<Call, PersistentBackwardCall<T>>;
    call.layout = layout_of(shape);
    const int row_groups = (size_.batch + shape.rows() - 1) / shape.rows();
    run_emulated(shape, cut_.policy, size_.directions, row_groups,
                 [&](EmulatedGroup& group, int d, int row_group) {
                   const auto kernel = std::make_unique<Kernel>(group, call, call.chain[d], d, row_group);
                   kernel->run();
                 });
  }

  const Inputs<T>& in_;
  const Size size_;
  const Cut cut_;
  const float clip_;
  std::vector<T> y_, slots_[2], hn_[2], cn_[2], h_all_[2], c_all_[2], h_[2], grad_h0_[2], grad_c0_[2];
  std::vector<float> c_[2];
};

double worst[static_cast<int>(Precision::count)] = {};

template <class Cell, Precision precision, int depth, class T>
void check_case(const char* name, const Size& size, double tolerance, float clip) {
  const Inputs<T> in = random_inputs<T>(size, Cell::gates, Cell::slots);
  const Outputs<double> plain = Reference<Cell, T>(in, clip).run();
  const auto single = Emulation<Cell, precision, depth, T>(in, {Policy::block, 1, 1, 2}, clip).run();
  const auto expected = plain.all(size.directions, Cell::has_cell_state);
  const auto one = single.all(size.directions, Cell::has_cell_state);
  const std::string what = std::string(name) + " T" + std::to_string(size.steps) + " B" +
                           std::to_string(size.batch) + " H" + std::to_string(size.hidden) + " D" +
                           std::to_string(size.directions) + (size.lengths ? " lengths" : "") +
                           (size.resets ? " resets" : "");
  for (std::size_t i = 0; i < one.size(); ++i) {
    double error = 0;
    for (std::size_t k = 0; k < one[i].second->size(); ++k) {
      const double difference = std::fabs((*one[i].second)[k] - (*expected[i].second)[k]);
      error = difference == difference ? std::max(error, difference) : INFINITY;
    }
    // A pre-activation near 0 takes the other slope.
    const bool jumps = precision != Precision::float32 && std::string(name) == "rnn_relu";
    if (jumps && std::string(one[i].first).substr(0, 4) == "grad") continue;
    worst[static_cast<int>(precision)] = std::max(worst[static_cast<int>(precision)], error);
    expect(error <= tolerance, what + ": " + one[i].first + " is off by " + std::to_string(error));
  }
  const Cut cuts[] = {{Policy::cluster, 1, 1, 1 + below(3)},
                      {Policy::cluster, 2, 1 + below(2), 1 + below(4), 2},
                      {Policy::grid, 1, 1 + below(3), 1 + below(3)},
                      {Policy::grid, 3, 1, 2, size.steps},
                      {Policy::grid, 1 + below(2), 3, 1 + below(5), 1, 2},
                      {Policy::block, 1, 2, 1 + below(6), 3},
                      {Policy::block, 1, 3, 1 + below(6), 1, 1},
                      {Policy::cluster, 1, 3, 2, 2, 1},
                      {Policy::cluster, 1, 1 + below(3), 1 + below(3), 2, 1 + below(2), 1}};
  for (const Cut& cut : cuts) {
    const auto run = Emulation<Cell, precision, depth, T>(in, cut, clip).run();
    const auto other = run.all(size.directions, Cell::has_cell_state);
    for (std::size_t i = 0; i < one.size(); ++i) {
      const bool same = std::equal(one[i].second->begin(), one[i].second->end(), other[i].second->begin(),
                                   [](float a, float b) { return bits_as<int>(a) == bits_as<int>(b); });
      expect(same, what + " " + name_of(cut.policy) + ": other bits of " + one[i].first);
    }
  }
}

template <class Cell>
void check_cell(const char* name, bool quick) {
  const Size sizes[] = {
      {1, 1, 1, 1, false, false, true, true},   {2, 3, 7, 1, false, false, true, true},
      {5, 8, 16, 2, true, false, true, true},   {6, 11, 33, 1, false, true, true, false},
      {9, 5, 50, 2, true, true, true, true},    {4, 17, 80, 1, true, true, false, true},
      {7, 2, 64, 2, false, true, false, false},
  };
  int i = 0;
  const float none = std::numeric_limits<float>::infinity();
  for (const Size& size : sizes) {
    const bool small = size.hidden <= 33;
    if (quick && !small) continue;
    const float clip = ++i % 2 ? none : 0.4f;
    check_case<Cell, Precision::float32, 3, float>(name, size, 2e-6, clip);
    check_case<Cell, Precision::tf32, 2, float>(name, size, 1e-3, none);
    check_case<Cell, Precision::bf16, 2, Bfloat16>(name, size, 0.03, none);
    if (small) check_case<Cell, Precision::fp16, 1, Half>(name, size, 3e-3, none);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool verbose = argc > 1 && std::string(argv[1]) == "-v";
  const bool quick = std::getenv("FASTRNN_CHECK_QUICK") != nullptr;  // a sanitizer takes its time
  check_planner(verbose);
  std::printf("planner: %ld checks\n", checks);
  check_fragments();
  std::printf("and fragments: %ld checks\n", checks);
  check_cell<Rnn<Nonlinearity::tanh>>("rnn_tanh", quick);
  check_cell<Rnn<Nonlinearity::relu>>("rnn_relu", quick);
  check_cell<Rnn<Nonlinearity::sigmoid>>("rnn_sigmoid", quick);
  check_cell<Lstm<false>>("lstm", quick);
  check_cell<Lstm<false, true>>("lstm_coupled", quick);
  check_cell<Gru>("gru", quick);
  std::printf("largest errors: bf16 %.2g fp16 %.2g tf32 %.2g float32 %.2g\n", worst[0], worst[1], worst[2],
              worst[3]);
  std::printf("%ld checks, %d failures\n", checks, failures);
  return failures != 0;
}
