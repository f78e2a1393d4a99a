#include "rnn.h"

#include "random.h"

namespace fastrnn {

const char* name_of(CellKind cell) {
  static const char* const names[] = {"rnn_tanh",        "rnn_relu",     "rnn_sigmoid",           "lstm",
                                      "lstm_peephole",   "lstm_coupled", "lstm_coupled_peephole", "gru",
                                      "gru_reset_before"};
  return names[static_cast<int>(cell)];
}

const char* name_of(MaskKind kind) {
  static const char* const names[] = {"dropout", "input", "recurrent", "weight", "zoneout_h", "zoneout_c"};
  return names[static_cast<int>(kind)];
}

const char* name_of(Merge merge) {
  static const char* const names[] = {"concat", "sum", "mean", "max", "mul"};
  return names[static_cast<int>(merge)];
}

int Config::gates() const {
  switch (cell) {
    case CellKind::lstm:
    case CellKind::lstm_peephole:
      return 4;
    case CellKind::lstm_coupled:
    case CellKind::lstm_coupled_peephole:
    case CellKind::gru:
    case CellKind::gru_reset_before:
      return 3;
    default:
      return 1;
  }
}

bool Config::has_cell_state() const {
  return cell == CellKind::lstm || cell == CellKind::lstm_peephole || coupled();
}

std::vector<Parameter> parameters_of(const Config& config) {
  std::vector<Parameter> parameters;
  const std::int64_t rows = config.gates() * config.hidden_size;
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (std::int64_t direction = 0; direction < config.directions(); ++direction) {
      const std::string suffix = "_l" + std::to_string(layer) + (direction ? "_reverse" : "");
      parameters.push_back({"weight_ih" + suffix, {rows, config.layer_input_size(layer)}});
      parameters.push_back({"weight_hh" + suffix, {rows, config.state_size()}});
      if (config.bias) {
        parameters.push_back({"bias_ih" + suffix, {rows}});
        parameters.push_back({"bias_hh" + suffix, {rows}});
      }
      if (config.proj_size) {
        parameters.push_back({"weight_hr" + suffix, {config.proj_size, config.hidden_size}});
      }
      if (config.has_peephole()) {
        parameters.push_back({"weight_peep" + suffix, {config.coupled() ? 2 : 3, config.hidden_size}});
      }
      if (!config.layer_norm) continue;
      for (const char* const product : {"norm_ih", "norm_hh"}) {
        parameters.push_back({std::string(product) + "_weight" + suffix, {rows}});
        parameters.push_back({std::string(product) + "_bias" + suffix, {rows}});
      }
      if (config.has_cell_state()) {
        parameters.push_back({"norm_c_weight" + suffix, {config.hidden_size}});
        parameters.push_back({"norm_c_bias" + suffix, {config.hidden_size}});
      }
    }
  }
  return parameters;
}

ParameterIndices parameter_indices(const Config& config, std::int64_t layer, std::int64_t direction) {
  const bool peephole = config.has_peephole(), norm = config.layer_norm;
  const bool norm_c = norm && config.has_cell_state();
  const int each = 2 + (config.bias ? 2 : 0) + (config.proj_size ? 1 : 0) + (peephole ? 1 : 0) +
                   (norm ? 4 : 0) + (norm_c ? 2 : 0);
  int next = static_cast<int>(layer * config.directions() + direction) * each;
  ParameterIndices indices{};
  indices.weight_ih = next++;
  indices.weight_hh = next++;
  indices.bias_ih = config.bias ? next++ : -1;
  indices.bias_hh = config.bias ? next++ : -1;
  indices.weight_hr = config.proj_size ? next++ : -1;
  indices.weight_peep = peephole ? next++ : -1;
  indices.norm_ih_weight = norm ? next++ : -1;
  indices.norm_ih_bias = norm ? next++ : -1;
  indices.norm_hh_weight = norm ? next++ : -1;
  indices.norm_hh_bias = norm ? next++ : -1;
  indices.norm_c_weight = norm_c ? next++ : -1;
  indices.norm_c_bias = norm_c ? next++ : -1;
  return indices;
}

}  // namespace fastrnn
