#include "rnn.h"

namespace fastrnn {

const char* name_of(CellKind cell) {
  static const char* const names[] = {"rnn_tanh",      "rnn_relu", "rnn_sigmoid",     "lstm",
                                      "lstm_peephole", "gru",      "gru_reset_before"};
  return names[static_cast<int>(cell)];
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
    case CellKind::gru:
    case CellKind::gru_reset_before:
      return 3;
    default:
      return 1;
  }
}

bool Config::has_cell_state() const { return cell == CellKind::lstm || cell == CellKind::lstm_peephole; }

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
      if (config.cell == CellKind::lstm_peephole) {
        parameters.push_back({"weight_peep" + suffix, {3, config.hidden_size}});
      }
    }
  }
  return parameters;
}

ParameterIndices parameter_indices(const Config& config, std::int64_t layer, std::int64_t direction) {
  const bool peephole = config.cell == CellKind::lstm_peephole;
  const int each = 2 + (config.bias ? 2 : 0) + (config.proj_size ? 1 : 0) + (peephole ? 1 : 0);
  int next = static_cast<int>(layer * config.directions() + direction) * each;
  ParameterIndices indices{};
  indices.weight_ih = next++;
  indices.weight_hh = next++;
  indices.bias_ih = config.bias ? next++ : -1;
  indices.bias_hh = config.bias ? next++ : -1;
  indices.weight_hr = config.proj_size ? next++ : -1;
  indices.weight_peep = peephole ? next++ : -1;
  return indices;
}

}  // namespace fastrnn
