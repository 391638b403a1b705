// What Grafana's own schema says of a dashboard's file, as a type that a literal is checked against: keys
// that it does not know, and values that it has no use for, are errors. (tests/unit/config/test_grafana.py)
import type { DataQuery } from '@grafana/schema';
import type * as model from '@grafana/schema/dist/esm/raw/dashboard/x/Dashboard_types.gen';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// As JSON has it: enums by their values. What is left out, Grafana fills in.
type Json<T> = T extends string
  ? string extends T ? T : `${T}`
  : T extends (infer U)[]
    ? Json<U>[]
    : T extends object
      ? { [K in keyof T]?: Json<T[K]> }
      : T;

// What the query of Prometheus adds is not in that package.
type Query = Json<DataQuery> & {
  expr: string; legendFormat: string; instant: boolean; range: boolean; format?: 'table';
};
type PanelOf<Type extends string, Options, Custom> =
  Json<Omit<model.Panel, 'type' | 'options' | 'fieldConfig' | 'targets'>> & {
    type: Type;
    options: Json<Options>;
    fieldConfig: {
      defaults: Json<Omit<model.FieldConfig, 'custom'>> & { custom?: Json<Custom> };
      overrides: [];
    };
    targets: Query[];
  };
type Row = Json<model.RowPanel> & { type: 'row' };

export type Dashboard = Json<Omit<model.Dashboard, 'panels'>> & {
  panels: (
    | Row
    | PanelOf<'stat', stat.Options, never>
    | PanelOf<'table', table.Options, table.FieldConfig>
    | PanelOf<'timeseries', timeseries.Options, timeseries.FieldConfig>
  )[];
};
