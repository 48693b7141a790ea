// Plans a route with a compiled planner and libtorch: no Python in the process. README.md says how it is built.
//
//     route planner.pt2 MAP.txt
//
// A map is text: '#' an obstacle, 'S' the start, 'G' the goal, all else free. The exit status is 0 where the way arrives.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <fstream>
#include <iostream>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Cell {
  int64_t row, column;
  bool operator==(const Cell&) const = default;
};

struct Map {
  std::vector<std::string> rows;
  Cell start, goal;

  bool free(Cell cell) const {
    return cell.row >= 0 && cell.row < int64_t(rows.size()) && cell.column >= 0 &&
        cell.column < int64_t(rows[0].size()) && rows[cell.row][cell.column] != '#';
  }
};

Map read_map(const std::string& file) {
  std::ifstream in(file);
  if (!in) throw std::runtime_error(file + ": can't be read");
  Map map;
  std::optional<Cell> start, goal;
  for (std::string row; in >> row; map.rows.push_back(row)) {
    if (!map.rows.empty() && row.size() != map.rows[0].size()) throw std::runtime_error(file + ": rows differ in length");
    for (size_t column = 0; column < row.size(); ++column) {
      std::optional<Cell>* end = row[column] == 'S' ? &start : row[column] == 'G' ? &goal : nullptr;
      if (end && *end) throw std::runtime_error(file + ": expected one S and one G");
      if (end) *end = Cell{int64_t(map.rows.size()), int64_t(column)};
    }
  }
  if (!start || !goal) throw std::runtime_error(file + ": expected one S and one G");
  map.start = *start, map.goal = *goal;
  return map;
}

// The number of the move to make in each cell, int64 [h, w]. The edge of a map is a wall: a ring of obstacles goes round.
at::Tensor plan(torch::inductor::AOTIModelPackageLoader& planner, const Map& map, int64_t ring) {
  int64_t height = map.rows.size(), width = map.rows[0].size();
  at::Tensor free = at::zeros({1, 1, height + 2 * ring, width + 2 * ring}), goal = at::zeros_like(free);
  auto cells = free.accessor<float, 4>();
  for (int64_t row = 0; row < height; ++row)
    for (int64_t column = 0; column < width; ++column) cells[0][0][row + ring][column + ring] = map.free({row, column});
  goal[0][0][map.goal.row + ring][map.goal.column + ring] = 1;
  at::Tensor max_steps = at::zeros({}, at::kLong);  // 0: the planner's own rule
  at::Tensor actions = planner.run({free, goal, max_steps}).at(1)[0];  // logits, actions, steps, residual
  return actions.narrow(0, ring, height).narrow(1, ring, width).contiguous();
}

int main(int count, char** words) try {
  if (count != 3) throw std::runtime_error("usage: route planner.pt2 MAP.txt");
  at::set_num_threads(1);
  torch::inductor::AOTIModelPackageLoader planner(words[1]);
  auto about = planner.get_metadata();
  std::vector<Cell> offsets;
  std::istringstream numbers(about.at("offsets"));
  for (Cell offset; numbers >> offset.row >> offset.column;) offsets.push_back(offset);
  bool wrap = about.at("wrap") == "1";

  Map map = read_map(words[2]);
  int64_t height = map.rows.size(), width = map.rows[0].size(), moves = 0;
  at::Tensor actions = plan(planner, map, wrap ? 0 : 1);
  auto action = actions.accessor<int64_t, 2>();
  Cell at = map.start;
  for (; at != map.goal && moves < height * width; ++moves) {
    Cell offset = offsets.at(action[at.row][at.column]);
    Cell to{at.row + offset.row, at.column + offset.column};
    if (wrap) to = {(to.row + height) % height, (to.column + width) % width};
    if (!map.free(to)) break;
    if (!(at == map.start)) map.rows[at.row][at.column] = 'o';
    at = to;
  }
  for (const std::string& row : map.rows) std::cout << row << '\n';
  std::cout << moves << " moves, " << (at == map.goal ? "arrives" : "does not arrive") << std::endl;
  return at == map.goal ? 0 : 1;
} catch (const c10::Error& error) {
  std::cerr << "route: " << error.what_without_backtrace() << std::endl;
  return 2;
} catch (const std::exception& error) {
  std::cerr << "route: " << error.what() << std::endl;
  return 2;
}
