"""Maps of D4RL's mazes and their tasks in gymnasium-robotics' PointMaze."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MazeTask:
    """One maze: environment id, D4RL's map and evaluation cell, time limit in steps."""

    env_id: str
    d4rl_map: str
    goal_cell: tuple[int, int]
    episode_steps: int


MAZES: dict[str, MazeTask] = {
    "umaze": MazeTask("PointMaze_UMaze-v3", "#####/#GOO#/###O#/#OOO#/#####", (1, 1), 300),
    "medium": MazeTask(
        "PointMaze_Medium-v3",
        "########/#OO##OO#/#OO#OOO#/##OOO###/#OO#OOO#/#O#OO#O#/#OOO#OG#/########",
        (6, 6),
        600,
    ),
    "large": MazeTask(
        "PointMaze_Large-v3",
        "############/#OOOO#OOOOO#/#O##O#O#O#O#/#OOOOOO#OOO#/#O####O###O#/#OO#O#OOOOO#/##O#O#O#O###/#OO#OOO#OGO#/"
        "############",
        (7, 9),
        800,
    ),
}


def maze_map(maze: str) -> list[list[int]]:
    """D4RL's map as rows of 1 (wall) and 0 (free)."""
    return [[int(cell == "#") for cell in row] for row in MAZES[maze].d4rl_map.split("/")]


def cell_center(maze: str, cell: tuple[int, int]) -> tuple[float, float]:
    """Position (x, y) in meters of the center of a cell (row, column)."""
    grid = maze_map(maze)
    return cell[1] + 0.5 - len(grid[0]) / 2, len(grid) / 2 - (cell[0] + 0.5)


def from_d4rl_frame(
    maze: str, observations: NDArray[np.float32], actions: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Observations [N, 4] and actions [N, 2] of D4RL's maze2d in the frame of gymnasium-robotics' PointMaze.

    D4RL's x runs down the rows and its y along the columns of the map, and the center of cell (i, j) is at
    (i - 0.2, j - 0.2). PointMaze has its origin in the middle, x along the columns and y up the rows.
    """
    grid = maze_map(maze)
    x, y, vx, vy = observations.T
    turned = np.stack([y + 0.7 - len(grid[0]) / 2, len(grid) / 2 - 0.7 - x, vy, -vx], axis=1)
    return turned.astype(np.float32), np.stack([actions[:, 1], -actions[:, 0]], axis=1)


def free_cells(maze: str) -> list[tuple[int, int]]:
    """Cells (row, column) that are no walls, row after row."""
    return [(i, j) for i, row in enumerate(maze_map(maze)) for j, wall in enumerate(row) if not wall]


@cache
def next_cells(maze: str) -> dict[tuple[int, int], dict[tuple[int, int], tuple[int, int]]]:
    """For each target cell, the next cell on a shortest path from every cell (breadth first from the target)."""
    free, routes = set(free_cells(maze)), {}
    for target in free_cells(maze):
        route, frontier = {target: target}, deque([target])
        while frontier:
            i, j = frontier.popleft()
            for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if cell in free and cell not in route:
                    route[cell] = (i, j)
                    frontier.append(cell)
        routes[target] = route
    return routes
